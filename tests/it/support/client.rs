//! Clients of a forward.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::{Client, Config, NoTls};

use super::account::find;
use super::postgres::{DATABASE, TRUSTED};

/// Logs in through a forward, without TLS and without a password.
pub async fn connect(address: SocketAddr) -> Result<Client, tokio_postgres::Error> {
    connect_as(address, "").await
}

/// The same as a program that names itself.
pub async fn connect_as(
    address: SocketAddr,
    application_name: &str,
) -> Result<Client, tokio_postgres::Error> {
    let mut config = Config::new();
    config.host(address.ip().to_string()).port(address.port()).user(TRUSTED).dbname(DATABASE);
    if !application_name.is_empty() {
        config.application_name(application_name);
    }
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        // How it ends, the next query says.
        let _ = connection.await;
    });
    Ok(client)
}

/// Asks for a number through a connection of its own.
pub async fn ask(address: SocketAddr, sql: &str) -> Result<String, tokio_postgres::Error> {
    let client = connect(address).await?;
    let row = client.query_one(sql, &[]).await?;
    Ok(row.get::<_, String>(0))
}

/// How a job that speaks the protocol by hand ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Job {
    /// It got the answer to its query.
    Done,
    /// It was ended after the database had begun to answer.
    CutAfterAnswer(String),
    /// It never heard a word of the database.
    Unanswered(String),
}

/// Logs in and asks one query, by hand, so as to know whether a failure came before the first answer.
pub async fn job(address: SocketAddr) -> Job {
    let mut socket = match TcpStream::connect(address).await {
        Ok(socket) => socket,
        Err(error) => return Job::Unanswered(error.to_string()),
    };
    let mut heard = Vec::new();
    match converse(&mut socket, &mut heard).await {
        Ok(()) => Job::Done,
        Err(error) if heard.is_empty() => Job::Unanswered(error.to_string()),
        // An error in place of the first answer is ours, not the database's.
        Err(error) if heard[0] == b'E' => {
            Job::Unanswered(format!("{error}: {}", String::from_utf8_lossy(&heard)))
        }
        Err(error) => Job::CutAfterAnswer(error.to_string()),
    }
}

async fn converse(socket: &mut TcpStream, heard: &mut Vec<u8>) -> std::io::Result<()> {
    let parameters = format!("user\0{TRUSTED}\0database\0{DATABASE}\0\0");
    let mut startup = u32::try_from(parameters.len() + 8).unwrap().to_be_bytes().to_vec();
    startup.extend([0, 3, 0, 0]);
    startup.extend(parameters.as_bytes());
    socket.write_all(&startup).await?;
    hear_until(socket, heard, b"Z\0\0\0\x05I").await?;
    socket.write_all(b"Q\0\0\0\x10SELECT 4711\0").await?;
    hear_until(socket, heard, b"4711").await?;
    socket.write_all(b"X\0\0\0\x04").await
}

async fn hear_until(socket: &mut TcpStream, heard: &mut Vec<u8>, words: &[u8]) -> std::io::Result<()> {
    while !heard.windows(words.len()).any(|window| window == words) {
        if socket.read_buf(heard).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// psql through a forward.
pub fn psql(address: SocketAddr, parameters: &str, sql: &str) -> Command {
    psql_on(&address.ip().to_string(), address.port(), parameters, sql)
}

/// psql on a host, or on the socket for this port in a directory.
pub fn psql_on(host: &str, port: u16, parameters: &str, sql: &str) -> Command {
    let mut command = Command::new(find("psql"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql])
        .arg(format!("host={host} port={port} dbname={DATABASE} {parameters}"))
        .stdin(Stdio::null());
    command
}

/// Runs psql; what it printed, or what it complained of.
pub fn run_psql(address: SocketAddr, parameters: &str, sql: &str) -> Result<String, String> {
    said(&mut psql(address, parameters, sql))
}

/// Runs a command; what it printed, or what it complained of.
pub fn said(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}
