//! Redshift's own driver, and dbt with it, through the real forward. A real PostgreSQL stands in for Redshift, behind a disguise:
//! the driver cannot speak with PostgreSQL as it is, whose version it cannot read, and which refuses its parameters.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::process::{Command, Output};
use std::sync::mpsc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use super::out;
use super::recipes::{Stage, recipe};
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
    let text = super::err(&output);
    assert!(text.contains("Hostname mismatch"), "{output:?}");
    // And PostgreSQL itself does not know its parameters.
    let lenient = std::fs::read_to_string(&script).unwrap().replace("verify-full", "verify-ca");
    std::fs::write(&script, lenient).unwrap();
    let output = stage.client_with_hosts("python3").arg(&script).env("PGUSER", MD5).output().unwrap();
    let text = super::err(&output);
    assert!(text.contains("unrecognized configuration parameter \"client_protocol_version\""), "{text}");
}

#[test]
fn dbt_redshift_connects_as_documented() {
    let cluster = Cluster::start("127.0.0.43", CLUSTER);
    let stage = &cluster.stage;
    stage.write("profiles.yml", &recipe("dbt-redshift", "# profiles.yml"));
    stage.write("dbt_project.yml", "name: shop\nprofile: nightly\n");
    let output = cluster.client("dbt").args(["--no-use-colors", "debug", "--connection"]).output().unwrap();
    assert!(out(&output).contains("Connection test: [OK connection ok]"), "{output:?}");
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

/// Where the page's driver logs in by IAM: what it asks AWS for a database of this name, to which these words belong.
fn asked_of_aws(cluster: &Cluster, name: &str, words: &str) -> Vec<String> {
    let (aws, asked) = fake_aws();
    let login = "    user=os.environ[\"PGUSER\"],\n    password=os.environ[\"PGPASSWORD\"],\n";
    let script = recipe("redshift_connector", "# redshift_query.py").replace(CLUSTER, name);
    assert!(script.contains(login), "{script}");
    let iam = format!("    iam=True,\n    db_user=os.environ[\"PGUSER\"],\n    {words}\n");
    let script = cluster.stage.write("redshift_query.py", &script.replace(login, &iam));
    let mut python = cluster.client("python3");
    python.envs([("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "not a secret")]);
    python.env("AWS_ENDPOINT_URL", format!("http://{aws}")).env("AWS_EC2_METADATA_DISABLED", "true");
    let output = python.arg(script).output().unwrap();
    assert_eq!(out(&output).trim(), "analytics", "{output:?}");
    asked.try_iter().collect()
}

#[test]
fn the_driver_reads_region_and_workgroup_out_of_the_real_name() {
    let cluster = Cluster::start("127.0.0.44", CLUSTER);
    let asked = asked_of_aws(&cluster, CLUSTER, "cluster_identifier=\"nightly\",");
    assert_eq!(asked.len(), 1, "{asked:?}");
    for words in ["Action=GetClusterCredentials&", "/us-east-1/redshift/aws4_request"] {
        assert!(asked[0].contains(words), "{words} is not in {asked:?}");
    }
    drop(cluster);
    let serverless = CLOUD[2];
    let workgroup = Cluster::start("127.0.0.44", serverless);
    let asked = asked_of_aws(&workgroup, serverless, "");
    assert_eq!(asked.len(), 1, "{asked:?}");
    for words in ["\"workgroupName\": \"nightly\"", "/us-east-1/redshift-serverless/aws4_request"] {
        assert!(asked[0].contains(words), "{words} is not in {asked:?}");
    }
}
