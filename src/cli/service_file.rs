//! `service-file`: a section for each database, as libpq reads them.
//! <https://www.postgresql.org/docs/current/libpq-pgservice.html>

use std::io::Write;

use super::Stop;
use super::asking::{ask, standpoint};
use super::libpq::{self, Standpoint};
use crate::client::Status;
use crate::failure::one_line;
use crate::ids::Name;
use crate::snapshot::Database;

const HEAD: &str = "\
# Written by `tunnelkeeper service-file`. libpq reads it where PGSERVICEFILE says, else as ~/.pg_service.conf; then
# `psql service=NAME` leads to a database.
";

/// The most bytes of a line. libpq refuses a longer one than 1022, comments too, and does not read on after it:
/// `parseServiceFile` in `fe-connect.c`.
const MAX_LINE: usize = 1000;

pub(super) fn service_file(url: &str, out: &mut impl Write) -> Result<(), Stop> {
    Ok(out.write_all(render(&ask(url)?).as_bytes())?)
}

fn render(status: &Status) -> String {
    let standpoint = standpoint(status);
    let mut text = HEAD.to_owned();
    for database in &status.snapshot.databases {
        text.push('\n');
        match section(database, &standpoint) {
            Ok(section) => text.push_str(&section),
            // In place, since whoever misses a service looks here.
            Err(why) => {
                text.push_str(&comment(&format!("There is no [{}]: {why}", database.name.escape_debug())));
            }
        }
    }
    text
}

fn comment(text: &str) -> String {
    let mut line = format!("# {}", one_line(text, MAX_LINE));
    while line.len() >= MAX_LINE {
        line.pop();
    }
    line.push('\n');
    line
}

fn section(database: &Database, standpoint: &Standpoint) -> Result<String, String> {
    let name = Name::parse(&database.name)?;
    let mut section = format!("[{name}]\n");
    for (parameter, value) in libpq::parameters(database, standpoint)? {
        section.push_str(&format!("{}={value}\n", parameter.keyword()));
    }
    Ok(section)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::troubled;

    #[test]
    fn a_section_each_and_none_that_an_answer_forges() {
        let mut snapshot = troubled();
        let [first, second] = &mut snapshot.databases[..] else { panic!() };
        first.sslmode = Some("prefer".to_owned());
        second.host = "db\n[analytics]\nhost=evil".to_owned();
        let mut third = second.clone();
        third.name = "x]\n[analytics".to_owned();
        snapshot.databases.push(third);
        let text = render(&Status { snapshot, elsewhere: None });
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).skip(2).collect();
        assert_eq!(
            lines[..5],
            ["[analytics]", "host=d", "hostaddr=127.0.0.1", "port=15432", "sslmode=prefer"]
        );
        assert!(lines[5].starts_with("# There is no [lost]: libpq cannot use \"db\\n[analytics]"), "{text}");
        assert!(lines[6].starts_with("# There is no [x]\\n[analytics]: \"x]\\n"), "{text}");
        assert_eq!(lines.len(), 7, "{text}");
    }

    #[test]
    fn no_line_is_longer_than_libpq_reads() {
        let mut snapshot = troubled();
        let [first, second] = &mut snapshot.databases[..] else { panic!() };
        first.listen = (1..200).map(|n| format!("unix:/run/tunnelkeeper/socket-{n}")).collect();
        second.name = "\u{1f418}".repeat(600);
        let mut third = first.clone();
        (third.name, third.listen) = ("long".repeat(15), vec!["127.0.0.1:1".to_owned()]);
        (third.host, third.database) = ("h".repeat(900), Some("ä".repeat(450)));
        snapshot.databases.push(third);
        let text = render(&Status { snapshot, elsewhere: None });
        assert!(text.contains("\nhost=hhh") && text.contains("\ndbname=ää"), "{text}");
        assert!(text.contains("or listen on 127.0.0.1 too\n"), "{text}");
        let longest = text.lines().map(str::len).max().unwrap();
        assert!((900..=MAX_LINE).contains(&longest), "{longest}: {text}");
    }
}
