//! What a server says went wrong, as far as it is counted: whether the session is over, and the class of the SQLSTATE.
//!
//! Source: PostgreSQL documentation, "Error and Notice Message Fields" and appendix "PostgreSQL Error Codes". Neither
//! the text nor anything else of the message is kept.

/// The classes of errors, by the first two characters of their codes; those of success and of warnings (`00` to `02`) are
/// none. The last one is for all that the documentation does not know.
const CLASSES: [&str; 42] = [
    "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21", "22", "23", "24", "25", "26",
    "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D", "3F", "40", "42", "44", "53", "54", "55",
    "57", "58", "72", "F0", "HV", "P0", "XX", "other",
];

/// The class of an error: PostgreSQL's two characters, or `other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ErrorClass(usize);

impl ErrorClass {
    /// Every class there is.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..CLASSES.len()).map(Self)
    }

    /// The class of a code.
    #[must_use]
    pub fn of(code: &[u8]) -> Self {
        let known =
            CLASSES.iter().position(|class| code.len() == CODE_LEN && code.starts_with(class.as_bytes()));
        Self(known.unwrap_or(CLASSES.len() - 1))
    }

    /// The word in the metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        CLASSES.get(self.0).copied().unwrap_or("other")
    }
}

const CODE_LEN: usize = 5;

/// What is kept of one field: no word that is looked for is longer, and one byte more tells a longer one apart.
const KEPT: usize = CODE_LEN + 1;

/// What one message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServerError {
    pub(super) class: ErrorClass,
    /// The server ends the session (severity FATAL or PANIC).
    pub(super) fatal: bool,
}

/// Reads the body of one `ErrorResponse`, which may come in pieces.
#[derive(Clone, Debug, Default)]
pub(super) struct ErrorFields {
    /// The type of the field that is passing; none where the next byte is one.
    field: Option<u8>,
    value: [u8; KEPT],
    value_len: usize,
    class: Option<ErrorClass>,
    /// By the severity in English, which servers of long ago do not send.
    fatal: Option<bool>,
    /// By the severity in the server's language.
    fatal_as_shown: bool,
}

impl ErrorFields {
    pub(super) fn feed(&mut self, body: &[u8]) {
        for byte in body {
            match (self.field, *byte) {
                (None, 0) => {}
                (None, field) => (self.field, self.value_len) = (Some(field), 0),
                (Some(field), 0) => {
                    self.note(field);
                    self.field = None;
                }
                (Some(_), byte) => {
                    if let Some(slot) = self.value.get_mut(self.value_len) {
                        *slot = byte;
                        self.value_len += 1;
                    }
                }
            }
        }
    }

    fn note(&mut self, field: u8) {
        let value = self.value.get(..self.value_len).unwrap_or_default();
        let fatal = matches!(value, b"FATAL" | b"PANIC");
        match field {
            b'C' => self.class = Some(ErrorClass::of(value)),
            b'V' => self.fatal = Some(fatal),
            b'S' => self.fatal_as_shown = fatal,
            _ => {}
        }
    }

    /// What it said in the end.
    pub(super) fn finish(self) -> ServerError {
        let class = self.class.unwrap_or_else(|| ErrorClass::of(b""));
        ServerError { class, fatal: self.fatal.unwrap_or(self.fatal_as_shown) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_pairs_of_characters_in_order() {
        let classes: Vec<&str> = ErrorClass::all().map(ErrorClass::as_str).collect();
        let known = classes.len() - 1;
        assert!(classes[..known].is_sorted_by(|a, b| a < b), "{classes:?}");
        assert!(classes[..known].iter().all(|class| class.len() == 2));
        for (code, class) in [("42P01", "42"), ("XX000", "XX"), ("00000", "other"), ("99999", "other")] {
            assert_eq!(ErrorClass::of(code.as_bytes()).as_str(), class);
        }
        for code in ["", "42", "42P012", "\u{1f600}P"] {
            assert_eq!(ErrorClass::of(code.as_bytes()).as_str(), "other");
        }
    }

    #[test]
    fn fields_that_come_in_any_pieces() {
        for (body, class, fatal) in [
            (&b"SERROR\0VERROR\0C42P01\0Mrelation \"C23505\" does not exist\0\0"[..], "42", false),
            (b"SFATAL\0VFATAL\0C57P01\0Mterminating\0\0", "57", true),
            (b"SPANIC\0C58030\0\0", "58", true),
            (b"SFATALE\0VFATAL\0C57P01\0\0", "57", true),
            (b"SFATAL\0VERROR\0C42601\0\0", "42", false),
            (b"SERREUR\0C42601\0\0", "42", false),
            (b"SERROR\0C426011\0\0", "other", false),
            (b"Mno code\0\0", "other", false),
            (b"C42P01", "other", false),
            (b"", "other", false),
        ] {
            for cut in 1..=body.len().max(1) {
                let mut fields = ErrorFields::default();
                body.chunks(cut).for_each(|piece| fields.feed(piece));
                let error = fields.finish();
                assert_eq!(
                    (error.class.as_str(), error.fatal),
                    (class, fatal),
                    "{body:?} in pieces of {cut}"
                );
            }
        }
    }
}
