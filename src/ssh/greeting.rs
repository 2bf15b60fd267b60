//! What a server says before the SSH protocol begins (RFC 4253 section 4.2): kept for the case that it is all it
//! ever says, since it tells a busy sshd from a wrong port.

use crate::failure::{Cause, Failure, one_line};
use crate::ids::HostPort;
use crate::milestones::{Milestone, Milestones};

/// RFC 4253 section 5.1: 1.99 is a server that speaks 2.0 and older.
const ANNOUNCEMENTS: [&[u8]; 2] = [b"SSH-2.0-", b"SSH-1.99-"];

/// Watches the first bytes of a connection. Memory is bounded by [`Greeting::MAX`].
#[derive(Debug, Default)]
pub(super) struct Greeting {
    milestones: Milestones,
    text: Vec<u8>,
    /// The line that announces SSH 2.0 has been seen whole.
    complete: bool,
}

impl Greeting {
    /// More than the 20 lines of 255 bytes that russh accepts.
    const MAX: usize = 8 << 10;

    /// The longest line that announces SSH (RFC 4253 section 4.2).
    const MAX_LINE: usize = 255;

    pub(super) fn new(milestones: Milestones) -> Self {
        Self { milestones, ..Self::default() }
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        if self.complete || self.text.len() >= Self::MAX {
            return;
        }
        self.text.extend(bytes.iter().take(Self::MAX - self.text.len()));
        let mut lines = self.text.split_inclusive(|byte| *byte == b'\n');
        let announces = |line: &[u8]| ANNOUNCEMENTS.iter().any(|words| line.starts_with(words));
        if let Some(line) = lines.find(|line| announces(line) && line.ends_with(b"\n")) {
            self.milestones.tell(|| Milestone::Greeted(String::from_utf8_lossy(line).into_owned()));
            self.complete = true;
            self.text = Vec::new();
        }
    }

    /// The server has greeted as an SSH server does.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// The server has said something, if only nonsense.
    pub(super) fn is_heard(&self) -> bool {
        self.complete || !self.text.is_empty()
    }

    /// The server has begun to greet as an SSH server does.
    pub(super) fn is_begun(&self) -> bool {
        let line = self.text.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        let begins = |words: &[u8]| line.starts_with(words) || words.starts_with(line);
        !line.is_empty() && line.len() < Self::MAX_LINE && ANNOUNCEMENTS.into_iter().any(begins)
    }

    /// Why there was no greeting, when the connection has ended without one.
    pub(super) fn failure(&self, bastion: &HostPort) -> Failure {
        let text = one_line(&String::from_utf8_lossy(&self.text), 120);
        if let Some((_, hint)) = BUSY.iter().find(|(words, _)| text.contains(words)) {
            Failure::new(Cause::BannerBusy, format!("sshd at {bastion} says \"{text}\"")).with_hint(*hint)
        } else if self.text.is_empty() {
            Failure::new(Cause::BannerClosed, format!("{bastion} closed the connection without a word"))
        } else if self.is_begun() {
            let text =
                format!("{bastion} said \"{text}\", and closed the connection before its greeting was whole");
            Failure::new(Cause::BannerClosed, text)
        } else if let Some(other) = recognise(&self.text) {
            let text = format!("{other} answers at {bastion}, and no SSH server: \"{text}\"");
            Failure::new(Cause::BannerNotSsh, text)
        } else {
            Failure::new(Cause::BannerNotSsh, format!("{bastion} says \"{text}\", which is not SSH 2.0"))
        }
    }
}

/// What sshd says to those that it turns away (OpenSSH 9.9, sshd.c and srclimit.c), and what that is about.
const BUSY: [(&str, &str); 2] = [
    (
        "Exceeded MaxStartups",
        "too many log in at this moment: raise MaxStartups (and PerSourceMaxStartups) in the bastion's sshd_config",
    ),
    (
        "Not allowed at this time",
        "sshd punishes this machine's address for failed logins: exempt it with PerSourcePenaltyExemptList in the bastion's \
         sshd_config, and see its log for what failed",
    ),
];

/// Who it may be that does not speak SSH, by its first bytes: its own greeting, or its complaint about ours.
fn recognise(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        _ if bytes.starts_with(b"HTTP/") || bytes.starts_with(b"<") => Some("a web server"),
        // A TLS alert (RFC 8446 sections 5.1 and 6).
        [0x15, 0x03, ..] => Some("a TLS server"),
        // An ErrorResponse (PostgreSQL 17, "Message Formats").
        [b'E', 0, _, _, _, b'S', ..] => Some("PostgreSQL"),
        // A handshake of version 10, the first packet of a connection (MySQL 8, "Protocol::HandshakeV10"), or an error.
        [_, _, 0, 0, 10 | 0xff, ..] => Some("MySQL"),
        _ if bytes.starts_with(b"220") => Some("a mail or FTP server"),
        _ if bytes.starts_with(b"SSH-1.") => Some("an SSH server of before 2.0"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(parts: &[&[u8]]) -> Greeting {
        let mut greeting = Greeting::default();
        parts.iter().for_each(|part| greeting.feed(part));
        greeting
    }

    #[test]
    fn an_ssh_server_greets() {
        assert!(greeting(&[b"SSH-2.0-OpenSSH_9.2\r\n"]).is_complete());
        assert!(greeting(&[b"welcome\r\nSS", b"H-1.99-x\n"]).is_complete());
        assert!(!greeting(&[b"SSH-1.5-old\r\n"]).is_complete());
        assert!(!greeting(&[b"SSH-2.0-OpenSSH_9.2"]).is_complete());
        assert!(!greeting(&[b"not SSH-2.0\r\n"]).is_complete());
    }

    #[test]
    fn everything_else_is_explained() {
        for (text, cause) in [
            (&b""[..], Cause::BannerClosed),
            (b"Exceeded MaxStartups\r\n", Cause::BannerBusy),
            (b"Not allowed at this time\r\n", Cause::BannerBusy),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", Cause::BannerNotSsh),
            (b"\0\xff\x03", Cause::BannerNotSsh),
            (b"SSH-1.5-old", Cause::BannerNotSsh),
            (b"SSH-2.0-old\r", Cause::BannerClosed),
            (b"welcome\r\nSSH-", Cause::BannerClosed),
            (&[&b"SSH-2.0-"[..], &[b'x'; 300]].concat(), Cause::BannerNotSsh),
        ] {
            assert_eq!(greeting(&[text]).failure(&HostPort::new("b", 22)).cause, cause, "{text:?}");
        }
    }

    #[test]
    fn who_answers_is_named_where_it_can_be_told() {
        for (text, who) in [
            (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "a web server answers at b:22"),
            (b"\x15\x03\x01\0\x02\x02\x46", "a TLS server"),
            (b"E\0\0\0\x85SFATAL\0VFATAL\0C0A000\0Munsupported frontend protocol", "PostgreSQL"),
            (b"\x4a\0\0\0\x0a8.0.36\0", "MySQL"),
            (b"220 mail.example.com ESMTP\r\n", "a mail or FTP server"),
            (b"SSH-1.5-old\r\n", "an SSH server of before 2.0"),
            (b"hello\r\n", "b:22 says \"hello\", which is not SSH 2.0"),
        ] {
            let failure = greeting(&[text]).failure(&HostPort::new("b", 22));
            assert!(failure.detail().starts_with(who), "{failure}");
        }
    }

    #[test]
    fn who_is_busy_and_who_punishes_have_remedies_of_their_own() {
        let hint = |text: &[u8]| greeting(&[text]).failure(&HostPort::new("b", 22)).hint().to_owned();
        assert!(hint(b"Exceeded MaxStartups\r\n").contains("raise MaxStartups"));
        assert!(hint(b"Not allowed at this time\r\n").contains("PerSourcePenaltyExemptList"));
    }

    #[test]
    fn an_endless_greeting_is_not_kept() {
        let mut greeting = Greeting::default();
        for _ in 0..1000 {
            greeting.feed(&[b'x'; 1000]);
        }
        assert_eq!(greeting.text.len(), Greeting::MAX);
        assert!(!greeting.is_complete());
    }
}
