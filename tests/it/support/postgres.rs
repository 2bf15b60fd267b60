//! One real PostgreSQL for all tests, started when the first one asks for it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::CertificateParams;
use tempfile::TempDir;

use super::account::{account, find};
use super::authority::{Authority, Issued};
use super::{eventually, free_port};

/// Logs in without a password.
pub const TRUSTED: &str = "trusted";
/// Logs in by SCRAM.
pub const SCRAM: &str = "scram_user";
/// Logs in by MD5.
pub const MD5: &str = "md5_user";
/// Is asked for the password in clear text.
pub const CLEAR: &str = "clear_user";
/// Of all users that have one.
pub const PASSWORD: &str = "correct horse battery staple";
/// Is asked for the password in clear text too, and let in with TLS only. Redshift gives temporary users such names.
pub const IAM: &str = "IAM:probe";
pub const DATABASE: &str = "warehouse";
/// A name that the server's certificate is for too, as databases in private networks have them.
pub const INTERNAL: &str = "analytics.internal";
/// Names that the server's certificate is for, besides `localhost`: a bastion that knows them leads to it.
pub const CLOUD: [&str; 4] = [
    "orders.c1abcdefghij.eu-west-1.rds.amazonaws.com",
    "analytics.c1abcdefghij.us-east-1.redshift.amazonaws.com",
    "nightly.123456789012.us-east-1.redshift-serverless.amazonaws.com",
    "instance-0123abcd.database.cloud.databricks.com",
];
pub const MAX_CONNECTIONS: u32 = 600;

pub struct Postgres {
    pub port: u16,
    dir: TempDir,
    server: Mutex<Option<Child>>,
    /// Closed by the end of the process.
    _removal: ChildStdin,
}

const HBA: &str = "\
local all all trust
host all trusted 127.0.0.1/32 trust
host all md5_user 127.0.0.1/32 md5
host all clear_user 127.0.0.1/32 password
hostssl all \"IAM:probe\" 127.0.0.1/32 password
host all scram_user 127.0.0.1/32 scram-sha-256
host all scram_user ::1/128 scram-sha-256
host all trusted ::1/128 trust
";

/// The shared server is never dropped, so somebody else has to remove its directory: a process that waits for the end of
/// this one, which closes its input, however it comes.
fn remove_in_the_end(dir: &Path) -> ChildStdin {
    let script = "read -r _; for _ in 1 2 3 4 5 6 7 8 9; do rm -rf -- \"$0\" && exit; sleep 1; done";
    let guard =
        Command::new("sh").arg("-c").arg(script).arg(dir).stdin(Stdio::piped()).stderr(Stdio::null()).spawn();
    guard.unwrap().stdin.unwrap()
}

impl Postgres {
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| {
            let (send, started) = mpsc::channel();
            // The server dies with the thread that started it, so this one lives as long as the process.
            std::thread::spawn(move || {
                send.send(Self::start(|_| {})).unwrap();
                loop {
                    std::thread::park();
                }
            });
            started.recv().expect("PostgreSQL did not start")
        })
    }

    /// Starts one of a test's own, which ends with it. Its certificate may be changed before it is issued.
    pub fn start(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let account = account();
        let dir = TempDir::with_prefix("postgres-").unwrap();
        account.give(dir.path());
        let removal = remove_in_the_end(dir.path());
        let postgres = Self { port: free_port(), dir, server: Mutex::default(), _removal: removal };
        let data = postgres.path("data");
        let initialised = account
            .command(&find("initdb"))
            .args(["--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(initialised.success());
        fs::write(data.join("pg_hba.conf"), HBA).unwrap();
        postgres.write_certificate(&data, change);
        let mut settings = File::options().append(true).open(data.join("postgresql.conf")).unwrap();
        writeln!(
            settings,
            "port = {}\nlisten_addresses = '127.0.0.1, ::1'\nunix_socket_directories = '{}'\n\
             max_connections = {MAX_CONNECTIONS}\nfsync = off\nsynchronous_commit = off\nfull_page_writes = off\n\
             ssl = on\nlog_connections = on\nshared_buffers = 256MB",
            postgres.port,
            postgres.dir.path().display(),
        )
        .unwrap();
        postgres.start_again();
        postgres.sql(
            "postgres",
            &format!(
                "CREATE ROLE {TRUSTED} LOGIN; SET password_encryption = 'scram-sha-256'; \
                 CREATE ROLE {SCRAM} LOGIN PASSWORD '{PASSWORD}'; CREATE ROLE {CLEAR} LOGIN PASSWORD '{PASSWORD}'; \
                 CREATE ROLE \"{IAM}\" LOGIN PASSWORD '{PASSWORD}'; \
                 SET password_encryption = 'md5'; CREATE ROLE {MD5} LOGIN PASSWORD '{PASSWORD}';"
            ),
        );
        postgres.sql("postgres", &format!("CREATE DATABASE {DATABASE} OWNER {TRUSTED}"));
        postgres
    }

    pub fn start_again(&self) {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let server = account()
            .command(&find("postgres"))
            .arg("-D")
            .arg(self.path("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.server.lock().unwrap() = Some(server);
        eventually("PostgreSQL answers", || self.try_sql("postgres", "SELECT 1").ok());
    }

    /// Ends it and all its connections, as a restart does (PostgreSQL's "fast" shutdown).
    pub fn stop(&self) {
        let mut server = self.server.lock().unwrap().take().unwrap();
        kill(Pid::from_raw(i32::try_from(server.id()).unwrap()), Signal::SIGINT).unwrap();
        server.wait().unwrap();
    }

    /// The server's certificate is for `localhost`, and for the names that services in the cloud give their databases.
    fn write_certificate(&self, data: &Path, change: impl FnOnce(&mut CertificateParams)) {
        let authority = Authority::new("authority of the tests");
        authority.write(&self.ca());
        let names: Vec<&str> = ["localhost"].into_iter().chain(CLOUD).chain([INTERNAL]).collect();
        let Issued { certificate, key } = authority.issue_with(&names, change);
        for (name, text, mode) in [("server.crt", certificate, 0o644), ("server.key", key, 0o600)] {
            let path = data.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            account().give(&path);
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The certificate of the authority that signed the server's.
    pub fn ca(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// Runs SQL as the superuser, not through any tunnel, and returns what it prints.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        self.try_sql(database, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    fn try_sql(&self, database: &str, sql: &str) -> Result<String, String> {
        let output = Command::new(find("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-h"])
            .arg(self.dir.path())
            .args(["-p", &self.port.to_string(), "-c", sql])
            .output()
            .unwrap();
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// `[databases.NAME]` behind a bastion; the probe logs in without a password.
    pub fn section(&self, name: &str, bastion: &str) -> String {
        format!(
            "[databases.{name}]\nbastion = \"{bastion}\"\nhost = \"127.0.0.1\"\nport = {}\n\
             listen = \"127.0.0.1:0\"\nuser = \"{TRUSTED}\"\ndatabase = \"{DATABASE}\"\n",
            self.port
        )
    }

    /// The server's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.path(&format!(".s.PGSQL.{}", self.port))
    }

    /// `[databases.NAME]` whose bastion reaches it over a Unix socket; the probe logs in without a password.
    pub fn socket_section(&self, name: &str, bastion: &str) -> String {
        let port = format!("\"127.0.0.1\"\nport = {}", self.port);
        self.section(name, bastion).replace(&port, &format!("{:?}", self.socket().display().to_string()))
    }

    /// `[databases.NAME]` whose probe has tokens of its own making, as RDS wants them; this server takes none.
    pub fn signed_section(&self, name: &str, bastion: &str) -> String {
        format!(
            "[databases.{name}]\nbastion = \"{bastion}\"\nhost = \"127.0.0.1\"\nport = {}\n\
             listen = \"127.0.0.1:0\"\nkind = \"rds\"\nmethod = \"iam\"\nregion = \"eu-west-1\"\n\
             user = \"{SCRAM}\"\naccess_key_id = \"AKIDEXAMPLE\"\nsecret_access_key = \"example\"\n\
             tls = {{ mode = \"require\", allow_unverified = true }}\n",
            self.port
        )
    }

    /// `[databases.NAME]` without a probe.
    pub fn unprobed_section(&self, name: &str, bastion: &str) -> String {
        format!(
            "[databases.{name}]\nbastion = \"{bastion}\"\nhost = \"127.0.0.1\"\nport = {}\n\
             listen = \"127.0.0.1:0\"\nprobe = {{ level = \"off\" }}\n",
            self.port
        )
    }
}
