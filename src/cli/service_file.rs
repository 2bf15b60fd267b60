//! `service-file`: a section for each database, as libpq reads them.
//! <https://www.postgresql.org/docs/current/libpq-pgservice.html>

use std::io::Write;

use super::Stop;
use super::asking::{MAX_SHOWN, ask, standpoint};
use super::libpq::{self, Standpoint};
use crate::client::Status;
use crate::failure::one_line;
use crate::ids::Name;
use crate::snapshot::Database;

const HEAD: &str = "\
# Written by `tunnelkeeper service-file`. libpq reads it where PGSERVICEFILE says, else as ~/.pg_service.conf; then
# `psql service=NAME` leads to a database.
";

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
                let line = format!("There is no [{}]: {why}", database.name.escape_debug());
                text.push_str(&format!("# {}\n", one_line(&line, MAX_SHOWN)));
            }
        }
    }
    text
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
}
