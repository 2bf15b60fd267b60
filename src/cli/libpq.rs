//! What libpq has to be told so that it reaches a database through the daemon and still sees it by its real name: the
//! name in `host`, which TLS verifies and SNI carries, and where to connect in `hostaddr` and `port`.
//! <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS>
//!
//! Never a user or a password. What the daemon says is checked, since it ends in environments and files.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::failure::one_line;
use crate::ids::POSTGRES_SOCKET;
use crate::snapshot::Database;

/// libpq's words for how much TLS proves, in this order.
pub(super) const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// Whether TLS proves whom it speaks to.
pub(super) fn verifies(mode: &str) -> bool {
    matches!(mode, "verify-ca" | "verify-full")
}

/// The most bytes of a value: libpq reads a service file by lines of at most 1023.
const MAX_VALUE: usize = 900;

/// The most characters of a list of listeners in a message, so that what to do is still said after it.
const MAX_LISTED: usize = 200;

/// A parameter of libpq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parameter {
    Host,
    HostAddr,
    Port,
    DbName,
    SslMode,
    SslRootCert,
}

impl Parameter {
    /// The keyword in connection strings and service files.
    pub(super) fn keyword(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::HostAddr => "hostaddr",
            Self::Port => "port",
            Self::DbName => "dbname",
            Self::SslMode => "sslmode",
            Self::SslRootCert => "sslrootcert",
        }
    }

    /// The environment variable of the same meaning.
    pub(super) fn variable(self) -> &'static str {
        match self {
            Self::Host => "PGHOST",
            Self::HostAddr => "PGHOSTADDR",
            Self::Port => "PGPORT",
            Self::DbName => "PGDATABASE",
            Self::SslMode => "PGSSLMODE",
            Self::SslRootCert => "PGSSLROOTCERT",
        }
    }
}

/// The surroundings in which a client will connect.
pub(super) struct Standpoint {
    /// The daemon's address, if it is on another machine.
    pub(super) elsewhere: Option<IpAddr>,
    /// The file with this machine's own roots. libpq has a word for them, `system`, only since version 16.
    pub(super) system_roots: Option<String>,
}

/// Where to connect.
enum Way {
    Tcp(SocketAddr),
    /// A directory with a socket in it that is named after a port.
    Unix(String, u16),
}

/// The parameters that lead a client to a database, without those that are not known.
///
/// # Errors
/// Why libpq cannot be led there: a clause about the database, and what to do.
pub(super) fn parameters(
    database: &Database,
    standpoint: &Standpoint,
) -> Result<Vec<(Parameter, String)>, String> {
    let encrypts = database.sslmode.as_deref().is_some_and(|mode| mode == "require" || verifies(mode));
    let (host, hostaddr, port) = match way(&database.listen, standpoint.elsewhere)? {
        Way::Tcp(address) => {
            let ip = address.ip().to_string();
            // A socket on the bastion has no name to verify, and would be looked for here.
            let host = if database.host.starts_with('/') { ip.clone() } else { database.host.clone() };
            (host, Some(ip), address.port())
        }
        Way::Unix(..) if encrypts => {
            return Err(format!(
                "libpq never encrypts on Unix sockets, and sslmode is \"{}\": let it listen on 127.0.0.1 too",
                database.sslmode.as_deref().unwrap_or_default()
            ));
        }
        Way::Unix(directory, port) => (directory, None, port),
    };
    if host.contains([',', ' ']) {
        return Err(format!("libpq cannot use \"{}\" as a host", host.escape_debug()));
    }
    let roots = match database.sslrootcert.as_deref() {
        Some("system") => standpoint.system_roots.clone().or(database.sslrootcert.clone()),
        roots => roots.map(str::to_owned),
    };
    let all = [
        (Parameter::Host, Some(host)),
        (Parameter::HostAddr, hostaddr),
        (Parameter::Port, Some(port.to_string())),
        (Parameter::DbName, database.database.clone()),
        (Parameter::SslMode, database.sslmode.clone()),
        (Parameter::SslRootCert, roots),
    ];
    let known = all.into_iter().filter_map(|(parameter, value)| Some((parameter, value?)));
    known.map(|(parameter, value)| check(parameter, &value).map(|()| (parameter, value))).collect()
}

/// Nothing may end a line, or change on the way through a file.
fn check(parameter: Parameter, value: &str) -> Result<(), String> {
    let is_mode = parameter == Parameter::SslMode;
    let usable = !value.is_empty()
        && value.len() <= MAX_VALUE
        && value.trim() == value
        && !value.contains(char::is_control)
        && (!is_mode || SSL_MODES.contains(&value));
    if usable {
        return Ok(());
    }
    let start: String = value.chars().take(100).collect();
    Err(format!("libpq cannot use \"{}\" as {}", start.escape_debug(), parameter.keyword()))
}

/// TCP before Unix sockets, since libpq encrypts only there.
fn way(listen: &[String], elsewhere: Option<IpAddr>) -> Result<Way, String> {
    let tcp = |text: &String| reach(text.parse().ok()?, elsewhere).map(Way::Tcp);
    let unix = |text: &String| unix_way(text.strip_prefix("unix:")?);
    if let Some(way) = listen.iter().find_map(tcp) {
        return Ok(way);
    }
    let everywhere = one_line(&listen.join(" and "), MAX_LISTED);
    let everywhere = everywhere.escape_debug();
    match elsewhere {
        Some(ip) => Err(format!("it listens on {everywhere} of {ip}, which cannot be reached from this machine")),
        None => listen.iter().find_map(unix).ok_or_else(|| {
            format!(
                "libpq cannot use its listener {everywhere}: give the socket the name {POSTGRES_SOCKET}5432, or listen on \
                 127.0.0.1 too"
            )
        }),
    }
}

/// Where a client reaches a TCP listener, if it does.
fn reach(listener: SocketAddr, elsewhere: Option<IpAddr>) -> Option<SocketAddr> {
    let ip = match (listener.ip(), elsewhere) {
        (ip, None) if !ip.is_unspecified() => ip,
        (IpAddr::V4(_), None) => Ipv4Addr::LOCALHOST.into(),
        (IpAddr::V6(_), None) => Ipv6Addr::LOCALHOST.into(),
        (ip, Some(_)) if ip.is_loopback() => return None,
        // An IPv6 listener takes no IPv4 clients.
        (ip, Some(daemon)) if ip.is_unspecified() => {
            Some(daemon).filter(|to| to.is_ipv4() == ip.is_ipv4())?
        }
        (ip, Some(_)) => ip,
    };
    Some(SocketAddr::new(ip, listener.port()))
}

/// libpq makes a socket's name of its directory and a port.
fn unix_way(path: &str) -> Option<Way> {
    let name = Path::new(path).file_name()?.to_str()?;
    let port = name.strip_prefix(POSTGRES_SOCKET)?.parse::<u16>().ok()?;
    let directory = path.strip_suffix(name)?.trim_end_matches('/');
    (name == format!("{POSTGRES_SOCKET}{port}") && directory.starts_with('/'))
        .then(|| Way::Unix(directory.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::troubled;

    /// The parameters as a connection string.
    fn told(change: impl FnOnce(&mut Database), elsewhere: Option<&str>) -> Result<String, String> {
        let mut database = troubled().databases.swap_remove(0);
        database.host = "db.internal".to_owned();
        change(&mut database);
        let elsewhere = elsewhere.map(|ip| ip.parse().unwrap());
        let standpoint = Standpoint { elsewhere, system_roots: Some("/etc/roots.pem".to_owned()) };
        let pair = |(parameter, value): (Parameter, String)| format!("{}={value}", parameter.keyword());
        parameters(&database, &standpoint)
            .map(|pairs| pairs.into_iter().map(pair).collect::<Vec<_>>().join(" "))
    }

    fn listening(listen: &[&str]) -> Result<String, String> {
        told(|database| database.listen = listen.iter().map(|text| (*text).to_owned()).collect(), None)
    }

    #[test]
    fn a_daemon_that_does_not_know_of_tls_is_understood() {
        let plain = told(|_| {}, None);
        assert_eq!(plain.unwrap(), "host=db.internal hostaddr=127.0.0.1 port=15432");
    }

    #[test]
    fn everything_there_is() {
        let verified = |roots: &'static str| {
            told(
                |database| {
                    database.database = Some("it's a = name".to_owned());
                    database.sslmode = Some("verify-full".to_owned());
                    database.sslrootcert = Some(roots.to_owned());
                },
                None,
            )
        };
        let start = "host=db.internal hostaddr=127.0.0.1 port=15432 dbname=it's a = name sslmode=verify-full sslrootcert=";
        assert_eq!(verified("/ca.pem").unwrap(), format!("{start}/ca.pem"));
        assert_eq!(verified("system").unwrap(), format!("{start}/etc/roots.pem"));
    }

    #[test]
    fn listeners() {
        for (listen, expected) in [
            (&["0.0.0.0:1"][..], "host=db.internal hostaddr=127.0.0.1 port=1"),
            (&["[::]:1"], "host=db.internal hostaddr=::1 port=1"),
            (&["10.0.0.7:1"], "host=db.internal hostaddr=10.0.0.7 port=1"),
            (&["unix:/run/x/.s.PGSQL.5433"], "host=/run/x port=5433"),
            (&["unix:/run/x/.s.PGSQL.5433", "[::1]:1"], "host=db.internal hostaddr=::1 port=1"),
            (&["unix:/run/x/pg", "unix:/run/y/.s.PGSQL.1"], "host=/run/y port=1"),
        ] {
            assert_eq!(listening(listen).unwrap(), expected, "{listen:?}");
        }
        for bad in [
            "unix:/run/pg.sock",
            "unix:/run/.s.PGSQL.05432",
            "unix:/run/.s.PGSQL.x",
            "unix:/run/.s.PGSQL.70000",
            "unix:.s.PGSQL.5432",
            "unix:/.s.PGSQL.5432",
            "localhost:1",
            "",
        ] {
            let text = listening(&[bad]).unwrap_err();
            assert!(
                text.contains("libpq cannot use") && text.contains("listen on 127.0.0.1"),
                "{bad}: {text}"
            );
        }
        assert!(listening(&[]).is_err());
    }

    #[test]
    fn a_daemon_elsewhere_is_reached_there_or_not_at_all() {
        let seen =
            |listen: &str, from: &str| told(|database| database.listen = vec![listen.to_owned()], Some(from));
        assert_eq!(seen("0.0.0.0:1", "10.0.0.7").unwrap(), "host=db.internal hostaddr=10.0.0.7 port=1");
        assert_eq!(seen("[::]:1", "fd00::7").unwrap(), "host=db.internal hostaddr=fd00::7 port=1");
        assert_eq!(seen("10.0.0.8:1", "10.0.0.7").unwrap(), "host=db.internal hostaddr=10.0.0.8 port=1");
        for listen in ["127.0.0.1:1", "[::1]:1", "[::]:1", "unix:/run/x/.s.PGSQL.1"] {
            let text = seen(listen, "10.0.0.7").unwrap_err();
            assert!(text.contains(listen) && text.contains("cannot be reached from this machine"), "{text}");
        }
    }

    #[test]
    fn encryption_is_not_given_up_for_a_unix_socket() {
        let with = |mode: &str| {
            told(
                |database| {
                    database.listen = vec!["unix:/run/x/.s.PGSQL.1".to_owned()];
                    database.sslmode = Some(mode.to_owned());
                },
                None,
            )
        };
        assert_eq!(with("prefer").unwrap(), "host=/run/x port=1 sslmode=prefer");
        assert!(with("require").unwrap_err().contains("never encrypts on Unix sockets"));
    }

    #[test]
    fn a_socket_on_the_bastion_has_no_name() {
        let told = told(|database| database.host = "/run/postgresql".to_owned(), None);
        assert_eq!(told.unwrap(), "host=127.0.0.1 hostaddr=127.0.0.1 port=15432");
    }

    #[test]
    fn nothing_is_smuggled_in() {
        for bad in ["", " x", "x ", "x\nhost=evil", "x\r", "x\0", "\u{85}", &"x".repeat(901)] {
            for set in [
                |database: &mut Database, value: String| database.database = Some(value),
                |database: &mut Database, value: String| database.sslrootcert = Some(value),
                |database: &mut Database, value: String| database.sslmode = Some(value),
                |database: &mut Database, value: String| database.host = value,
            ] {
                let text = told(|database| set(database, bad.to_owned()), None).unwrap_err();
                assert!(text.contains("libpq cannot use") && !text.contains(char::is_control), "{text}");
            }
        }
        assert!(told(|database| database.host = "good,evil".to_owned(), None).is_err());
        assert!(told(|database| database.sslmode = Some("none".to_owned()), None).is_err());
    }
}
