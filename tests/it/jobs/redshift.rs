//! Redshift's own driver, and dbt with it, through the real forward. A real PostgreSQL stands in for Redshift, behind a disguise:
//! the driver cannot speak with PostgreSQL as it is, whose version it cannot read, and which refuses its parameters.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::process::{Command, Output};
use std::sync::mpsc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use super::recipes::{Stage, recipe};
use super::{err, out};
use crate::support::postgres::{CLOUD, MD5, PASSWORD};
use crate::support::{Postgres, SniRouter, runtime};

/// The page's cluster.
const CLUSTER: &str = "nightly.c1abcdefghij.us-east-1.redshift.amazonaws.com";

/// What the driver sends that PostgreSQL knows too.
const KNOWN: [&str; 3] = ["user", "database", "application_name"];

/// What Redshift says of its version.
const VERSION: &[u8] = b"server_version\x008.0.2\0";

/// Makes PostgreSQL look like Redshift.
struct Disguise {
    port: u16,
    /// Ends all connections when it is dropped.
    _runtime: Runtime,
}

impl Disguise {
    fn before(database: u16) -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(async move { pass(client, database).await.ok() });
            }
        });
        Self { port, _runtime: runtime }
    }
}

async fn pass(mut client: TcpStream, database: u16) -> std::io::Result<()> {
    let length = client.read_u32().await?;
    let mut message = vec![0; usize::try_from(length).unwrap() - 4];
    client.read_exact(&mut message).await?;
    let startup = without_what_only_redshift_knows(&message);
    let mut database = TcpStream::connect(("127.0.0.1", database)).await?;
    database.write_u32(u32::try_from(startup.len() + 4).unwrap()).await?;
    database.write_all(&startup).await?;
    let ((mut from_client, to_client), (from_database, mut to_database)) = (client.split(), database.split());
    tokio::select! {
        ended = copy(&mut from_client, &mut to_database) => ended.map(drop),
        ended = answer(from_database, to_client) => ended,
    }
}

/// The version and the parameters of a StartupMessage, without the driver's own.
fn without_what_only_redshift_knows(message: &[u8]) -> Vec<u8> {
    let (version, parameters) = message.split_at(4);
    let words: Vec<&[u8]> = parameters.split(|byte| *byte == 0).collect();
    let known = words.chunks_exact(2).filter(|pair| KNOWN.iter().any(|name| name.as_bytes() == pair[0]));
    let words = known.flatten().flat_map(|word| word.iter().copied().chain([0]));
    version.iter().copied().chain(words).chain([0]).collect()
}

/// Passes the database's messages on, with Redshift's version in the ParameterStatus that tells it.
async fn answer(
    mut database: impl AsyncRead + Unpin,
    mut client: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    loop {
        let kind = database.read_u8().await?;
        let mut body = vec![0; usize::try_from(database.read_u32().await?).unwrap() - 4];
        database.read_exact(&mut body).await?;
        if kind == b'S' && body.starts_with(b"server_version\0") {
            body = VERSION.to_vec();
        }
        client.write_u8(kind).await?;
        client.write_u32(u32::try_from(body.len() + 4).unwrap()).await?;
        client.write_all(&body).await?;
    }
}

/// A cluster that wants to be called by its name, and a job with its connection.
struct Cluster {
    stage: Stage,
    router: SniRouter,
    _disguise: Disguise,
}

impl Cluster {
    fn start(own: &'static str, name: &str) -> Self {
        let disguise = Disguise::before(Postgres::shared().port);
        let router = SniRouter::start(name, disguise.port);
        let stage = Stage::before(own, name, router.port, &router.ca());
        Self { stage, router, _disguise: disguise }
    }

    fn client(&self, program: &str) -> Command {
        let mut command = self.stage.client_with_hosts(program);
        // Redshift knows no SCRAM.
        command.env("PGUSER", MD5);
        command
    }

    fn run(&self, script: &str) -> Output {
        let script = self.stage.write("redshift_query.py", script);
        self.client("python3").arg(script).output().unwrap()
    }
}

#[test]
fn the_driver_of_redshift_connects_as_documented_and_postgresql_is_not_redshift() {
    let cluster = Cluster::start("127.0.0.41", CLUSTER);
    let script = recipe("redshift_connector", "# redshift_query.py");
    let output = cluster.run(&script);
    assert_eq!(out(&output).trim(), "analytics", "{output:?}");
    assert_eq!(cluster.router.seen().last(), Some(&Some(CLUSTER.to_owned())));
    // Its name is verified: with another server there it is refused.
    let stage = Stage::set("127.0.0.42");
    let hosts = format!("127.0.0.1 localhost\n127.0.0.42 {CLUSTER}\n");
    std::fs::write(stage.file("hosts"), hosts).unwrap();
    let script = stage.write("redshift_query.py", &script);
    let output = stage.client_with_hosts("python3").arg(&script).env("PGUSER", MD5).output().unwrap();
    assert!(err(&output).contains("Hostname mismatch"), "{output:?}");
    // Without that it gives no name either.
    let lenient = recipe("redshift_connector", "# redshift_query.py").replace("verify-full", "verify-ca");
    assert!(!cluster.run(&lenient).status.success());
    assert_eq!(cluster.router.seen().last(), Some(&None));
    // And PostgreSQL itself does not know its parameters.
    let script = stage.write("redshift_query.py", &lenient);
    let output = stage.client_with_hosts("python3").arg(script).env("PGUSER", MD5).output().unwrap();
    let text = err(&output);
    assert!(text.contains("unrecognized configuration parameter \"client_protocol_version\""), "{text}");
}

#[test]
fn the_time_to_connect_of_redshifts_driver_stays_in_force() {
    let cluster = Cluster::start("127.0.0.45", CLUSTER);
    let script = recipe("redshift_connector", "# redshift_query.py");
    let script = script
        .replace("    port=", "    timeout=1,\n    port=")
        .replace("current_database()", "pg_sleep(600)");
    let output = cluster.run(&script);
    assert!(!output.status.success() && err(&output).contains("timed out"), "{output:?}");
}

/// `dbt debug` with a profile: what it says, when it could connect.
fn dbt_connects(cluster: &Cluster, profile: &str, environment: &[(&str, &str)]) {
    cluster.stage.write("profiles.yml", profile);
    cluster.stage.write("dbt_project.yml", "name: shop\nprofile: nightly\n");
    let mut dbt = cluster.client("dbt");
    dbt.args(["--no-use-colors", "debug", "--connection"]).envs(environment.iter().copied());
    let output = dbt.output().unwrap();
    assert!(out(&output).contains("Connection test: [OK connection ok]"), "{output:?}");
}

#[test]
fn dbt_redshift_connects_as_documented() {
    let cluster = Cluster::start("127.0.0.43", CLUSTER);
    dbt_connects(&cluster, &recipe("dbt-redshift", "# profiles.yml"), &[]);
    assert_eq!(cluster.router.seen().last(), Some(&Some(CLUSTER.to_owned())));
}

/// What AWS answers: a database user that the stand-in lets in.
fn credentials(request: &str) -> String {
    if request.contains("RedshiftServerless.GetCredentials") {
        return format!("{{\"dbUser\":\"{MD5}\",\"dbPassword\":\"{PASSWORD}\",\"expiration\":4070908800}}");
    }
    format!(
        "<GetClusterCredentialsResponse xmlns=\"http://redshift.amazonaws.com/doc/2012-12-01/\">\
         <GetClusterCredentialsResult><DbUser>{MD5}</DbUser><DbPassword>{PASSWORD}</DbPassword>\
         <Expiration>2099-01-01T00:00:00Z</Expiration></GetClusterCredentialsResult>\
         <ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></GetClusterCredentialsResponse>"
    )
}

/// Answers every request so, and hands out what was asked.
fn fake_aws() -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (send, asked) = mpsc::channel();
    std::thread::spawn(move || {
        for mut socket in listener.incoming().map_while(Result::ok) {
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            while !complete(&request) {
                let read = socket.read(&mut buffer).unwrap_or_default();
                if read == 0 {
                    break;
                }
                request.extend(&buffer[..read]);
            }
            let request = String::from_utf8_lossy(&request).into_owned();
            let body = credentials(&request);
            let _ = send.send(request);
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: ";
            let _ = write!(socket, "{head}{}\r\n\r\n{body}", body.len());
        }
    });
    (address, asked)
}

/// Whether the whole body has come.
fn complete(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).into_owned();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

/// Where a job has its credentials for AWS, and AWS.
fn aws_environment(aws: &str) -> [(&str, &str); 4] {
    [
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "not a secret"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_ENDPOINT_URL", aws),
    ]
}

/// A name, what the driver and dbt have to be told beside it, and what they are to ask of AWS.
struct Case {
    name: &'static str,
    driver: &'static str,
    dbt: &'static str,
    asked: [&'static str; 2],
}

const CASES: [Case; 2] = [
    Case {
        name: CLUSTER,
        driver: "iam=True, db_user=os.environ[\"PGUSER\"], cluster_identifier=\"nightly\"",
        dbt: "method: iam\n      cluster_id: nightly\n",
        asked: ["Action=GetClusterCredentials&", "/us-east-1/redshift/aws4_request"],
    },
    Case {
        name: CLOUD[2],
        driver: "iam=True",
        dbt: "method: iam\n",
        asked: ["\"workgroupName\": \"nightly\"", "/us-east-1/redshift-serverless/aws4_request"],
    },
];

#[test]
fn with_iam_the_real_name_tells_the_region_and_the_workgroup() {
    for case in CASES {
        let cluster = Cluster::start("127.0.0.44", case.name);
        let (address, asked) = fake_aws();
        let aws = format!("http://{address}");
        let is_asked_once = || {
            let requests: Vec<String> = asked.try_iter().collect();
            let right = |request: &String| case.asked.iter().all(|words| request.contains(words));
            assert!(requests.len() == 1 && requests.iter().all(right), "{requests:?}");
        };
        let script = recipe("redshift_connector", "# redshift_query.py");
        let password = "    user=os.environ[\"PGUSER\"],\n    password=os.environ[\"PGPASSWORD\"],\n";
        let iam = script.replace(password, &format!("    {},\n", case.driver)).replace(CLUSTER, case.name);
        assert_ne!(iam, script);
        let script = cluster.stage.write("redshift_query.py", &iam);
        let output = cluster.client("python3").arg(script).envs(aws_environment(&aws)).output().unwrap();
        assert_eq!(out(&output).trim(), "analytics", "{output:?}");
        is_asked_once();
        let profile = recipe("dbt-redshift", "# profiles.yml");
        let password = "password: \"{{ env_var('PGPASSWORD') }}\"\n";
        let iam = profile.replace(password, case.dbt).replace(CLUSTER, case.name);
        assert_ne!(iam, profile);
        dbt_connects(&cluster, &iam, &aws_environment(&aws));
        is_asked_once();
    }
}
