//! Fetches secrets from where the configuration says they live. Nothing is kept: each login asks anew.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::ChildStdout;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::failure::plain;
use crate::files;
use crate::process_group::ProcessGroup;
use crate::secret::{Secret, SecretSource};

/// Longer than any secret, in bytes.
const MAX_LEN: usize = 64 << 10;
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Fetches a secret.
///
/// # Errors
/// One sentence that names the source and says what is wrong with it, never what was read.
pub async fn fetch(source: &SecretSource) -> Result<Secret, String> {
    let text = match source {
        SecretSource::Plain(secret) => return Ok(secret.clone()),
        SecretSource::Env(variable) => {
            std::env::var(variable).map(Zeroizing::new).map_err(|_| "is not set, or is not text".to_owned())
        }
        SecretSource::File(path) => read_file(path).await,
        SecretSource::Credential(name) => match std::env::var_os("CREDENTIALS_DIRECTORY") {
            Some(dir) => read_file(&Path::new(&dir).join(name)).await,
            None => {
                Err("cannot be read: $CREDENTIALS_DIRECTORY is not set, so systemd passed none".to_owned())
            }
        },
        SecretSource::Command(argv) => run(argv).await,
    };
    let mut text = text.map_err(|found| format!("{source} {found}"))?;
    if let Some(end) = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line).len()) {
        text.truncate(end);
    }
    if text.is_empty() {
        Err(format!("{source} is empty"))
    } else {
        Ok(Secret::new(std::mem::take(&mut *text)))
    }
}

async fn read_file(path: &Path) -> Result<Zeroizing<String>, String> {
    let path = path.to_owned();
    let read = files::read_aside(move || files::read(&path, MAX_LEN)).await;
    let bytes = read.and_then(|read| read.map_err(|error| plain(&error)));
    to_text(&bytes.map_err(|text| format!("cannot be read: {text}"))?)
}

async fn collect(output: ChildStdout) -> Result<Zeroizing<String>, String> {
    // A buffer that grows would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_LEN + 1));
    let read = output.take(MAX_LEN as u64 + 1).read_to_end(&mut bytes).await;
    read.map_err(|error| format!("cannot be read: {}", plain(&error)))?;
    if bytes.len() > MAX_LEN {
        return Err(format!("is longer than {MAX_LEN} bytes"));
    }
    to_text(&bytes)
}

fn to_text(bytes: &[u8]) -> Result<Zeroizing<String>, String> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => Err("is not text".to_owned()),
    }
}

/// Runs a command for what it prints, at most 64 KiB within 10 s. It is ended with all that it started if that is too little,
/// or if nobody waits any more.
///
/// # Errors
/// The end of a sentence that begins with the command, and shows nothing of what it printed.
pub(super) async fn run(argv: &[String]) -> Result<Zeroizing<String>, String> {
    let started = ProcessGroup::start(argv, Stdio::null(), Stdio::null());
    let mut group = started.map_err(|error| format!("cannot be started: {}", plain(&error)))?;
    let output = group.0.stdout.take().ok_or("gives no output")?;
    let finish = async {
        let text = collect(output).await?;
        match group.0.wait().await {
            Ok(status) if status.success() => Ok(text),
            Ok(status) => Err(format!("failed ({status}): run it by hand as the daemon's user to see why")),
            Err(error) => Err(format!("cannot be waited for: {}", plain(&error))),
        }
    };
    match timeout(COMMAND_TIMEOUT, finish).await {
        Ok(result) => result,
        Err(_) => Err(format!("did not finish within {} s", COMMAND_TIMEOUT.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::Pid;

    use super::*;

    fn command(argv: &[&str]) -> SecretSource {
        SecretSource::Command(argv.iter().map(|word| (*word).to_owned()).collect())
    }

    #[tokio::test]
    async fn one_trailing_newline_goes() {
        for (printed, expected) in
            [("hunter2\n", "hunter2"), ("a\n\n", "a\n"), ("b\r\n", "b"), (" c ", " c ")]
        {
            let secret = fetch(&command(&["printf", "%s", printed])).await.unwrap();
            assert_eq!(secret.expose(), expected);
        }
    }

    #[tokio::test]
    async fn files_are_read_anew_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let source = SecretSource::File(file.path().to_owned());
        for text in ["one", "two"] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(fetch(&source).await.unwrap().expose(), text);
        }
    }

    #[tokio::test]
    async fn what_goes_wrong_is_named_and_what_was_read_is_not() {
        let (empty, large) =
            (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
        std::fs::write(large.path(), vec![b'x'; 70_000]).unwrap();
        let file = |file: &tempfile::NamedTempFile| SecretSource::File(file.path().to_owned());
        for (source, expected) in [
            (SecretSource::Env("TUNNELKEEPER_TEST_UNSET".into()), "is not set"),
            (SecretSource::File("/nonexistent".into()), "file /nonexistent cannot be read: No such file"),
            (SecretSource::Credential("x".into()), "$CREDENTIALS_DIRECTORY is not set"),
            (file(&empty), "is empty"),
            (file(&large), "is longer than 65536 bytes"),
            (command(&["/nonexistent/program"]), "command /nonexistent/program cannot be started"),
            (command(&["sh", "-c", "echo hunter2; exit 3"]), "failed (exit status: 3)"),
            (command(&["printf", "\\377"]), "is not text"),
        ] {
            let error = fetch(&source).await.unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_flood_from_a_command_is_cut_off() {
        let error = fetch(&command(&["yes"])).await.unwrap_err();
        assert!(error.contains("is longer than"), "{error}");
    }

    #[tokio::test]
    async fn a_command_that_is_given_up_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (script, pid) = (dir.path().join("script"), dir.path().join("pid"));
        std::fs::write(&script, format!("sleep 300 & echo $! > {}; wait\n", pid.display())).unwrap();
        let source = command(&["sh", script.to_str().unwrap()]);
        let child = loop {
            // Each try is given up after a moment; one of them gets far enough.
            let _ = timeout(Duration::from_millis(300), fetch(&source)).await;
            if let Ok(pid) = std::fs::read_to_string(&pid).unwrap_or_default().trim().parse::<i32>() {
                break Pid::from_raw(pid);
            }
        };
        while nix::sys::signal::kill(child, None).is_ok() && !is_zombie(child) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ended, and waiting for whoever adopted it to notice.
    fn is_zombie(pid: Pid) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with('Z'))
    }
}
