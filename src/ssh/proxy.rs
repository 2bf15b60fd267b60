//! A bastion reached through a command whose input and output are the connection, as OpenSSH's `ProxyCommand`: for
//! AWS SSM, cloud IAP and the like. It lives as long as the session.

use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::transport::Socket;
use crate::failure::{Cause, Failure, one_line, plain};
use crate::ids::HostPort;
use crate::process_group::ProcessGroup;

/// What is kept of a command's complaints, in bytes.
const MAX_WORDS: usize = 2 << 10;

/// How long a command may take to end by itself once its connection is not wanted any more.
const GOODBYE: Duration = Duration::from_millis(500);

/// How long a command that has closed the connection may take to end, and to say why.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// The connection. Dropping it ends the command.
pub(super) struct Proxy {
    input: ChildStdin,
    output: ChildStdout,
    _life: DropGuard,
}

/// What became of the command, once it has ended by itself.
pub(super) struct Fate(oneshot::Receiver<String>);

impl Proxy {
    /// Starts `argv` with `%h`, `%p` and `%r` replaced by the bastion's host, its port and the user, and `%%` by `%`.
    ///
    /// # Errors
    /// `tcp` `proxy_command_failed`.
    pub(super) fn start(argv: &[String], bastion: &HostPort, user: &str) -> Result<(Self, Fate), Failure> {
        let argv: Vec<String> = argv.iter().map(|word| expand(word, bastion, user)).collect();
        let program = argv.first().cloned().unwrap_or_default();
        let cannot = |error: io::Error| {
            let text = format!("the proxy_command {program} cannot be started: {}", plain(&error));
            Failure::new(Cause::TcpProxyCommandFailed, text)
        };
        let mut group = ProcessGroup::start(&argv, Stdio::piped(), Stdio::piped()).map_err(cannot)?;
        let pipes = (group.0.stdin.take(), group.0.stdout.take(), group.0.stderr.take());
        let (Some(input), Some(output), Some(errors)) = pipes else {
            return Err(cannot(io::Error::other("it has no pipes")));
        };
        let life = CancellationToken::new();
        let (tell, fate) = oneshot::channel();
        tokio::spawn(watch(program, group, errors, life.clone(), tell));
        Ok((Self { input, output, _life: life.drop_guard() }, Fate(fate)))
    }
}

impl Fate {
    /// Why a connection ended before the bastion had said anything.
    pub(super) async fn explain(self, bastion: &HostPort) -> Failure {
        let text = match timeout(END_PATIENCE, self.0).await {
            Ok(Ok(text)) => text,
            _ => format!("the proxy_command closed the connection to {bastion}"),
        };
        Failure::new(Cause::TcpProxyCommandFailed, text)
    }
}

fn expand(word: &str, bastion: &HostPort, user: &str) -> String {
    let mut expanded = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('%') {
        expanded.push_str(before);
        let port;
        let (value, len) = match after.chars().next() {
            Some('h') => (&*bastion.host, 1),
            Some('p') => {
                port = bastion.port.to_string();
                (port.as_str(), 1)
            }
            Some('r') => (user, 1),
            Some('%') => ("%", 1),
            _ => ("%", 0),
        };
        expanded.push_str(value);
        rest = after.get(len..).unwrap_or_default();
    }
    expanded + rest
}

/// Waits for the command's end, and ends it when the connection is not wanted any more.
async fn watch(
    program: String,
    mut group: ProcessGroup,
    mut errors: ChildStderr,
    life: CancellationToken,
    tell: oneshot::Sender<String>,
) {
    let mut words = Vec::new();
    let status = tokio::select! {
        () = async {
            life.cancelled().await;
            // Its input is closed now, so that it may end by itself, or has already.
            sleep(GOODBYE).await;
        } => return,
        status = async {
            // A command that is not listened to would wait to complain.
            let mut block = [0; 512];
            while let Ok(read @ 1..) = errors.read(&mut block).await {
                let room = MAX_WORDS.saturating_sub(words.len()).min(read);
                words.extend_from_slice(block.get(..room).unwrap_or_default());
            }
            group.0.wait().await
        } => status,
    };
    let status = status.map_or_else(|error| plain(&error), |status| status.to_string());
    let words = String::from_utf8_lossy(&words);
    let said = words.lines().map(str::trim).rfind(|line| !line.is_empty());
    let said = said.map_or(String::new(), |line| format!(": \"{}\"", one_line(line, 200)));
    // Nobody may want to know.
    let _ = tell.send(format!("the proxy_command {program} ended ({status}){said}"));
}

impl AsyncRead for Proxy {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_read(context, buffer)
    }
}

impl AsyncWrite for Proxy {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.input).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_shutdown(context)
    }
}

impl Socket for Proxy {
    /// A pipe knows of nothing that reading would not show; the session's own pings find out.
    fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bastion() -> HostPort {
        HostPort::new("i-0123", 2222)
    }

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn words_are_expanded() {
        for (word, expected) in [
            ("--target=%h", "--target=i-0123"),
            ("%r@%h:%p", "me@i-0123:2222"),
            ("100%%", "100%"),
            ("%x%", "%x%"),
            ("é%hé", "éi-0123é"),
        ] {
            assert_eq!(expand(word, &bastion(), "me"), expected);
        }
    }

    #[tokio::test]
    async fn what_became_of_it_is_told() {
        for (words, expected) in [
            (
                &["/nonexistent/proxy"][..],
                "the proxy_command /nonexistent/proxy cannot be started: No such file",
            ),
            (
                &["sh", "-c", "echo; echo no such %h >&2; exit 3"],
                "sh ended (exit status: 3): \"no such i-0123\"",
            ),
            (&["true"], "the proxy_command true ended (exit status: 0)"),
            (&["sh", "-c", "exec >&-; sleep 60"], "the proxy_command closed the connection to i-0123:2222"),
        ] {
            let failure = match Proxy::start(&argv(words), &bastion(), "me") {
                Err(failure) => failure,
                Ok((mut proxy, fate)) => {
                    let _ = proxy.read_to_end(&mut Vec::new()).await;
                    fate.explain(&bastion()).await
                }
            };
            assert_eq!(failure.cause, Cause::TcpProxyCommandFailed);
            assert!(failure.detail().contains(expected), "{failure}");
        }
    }
}
