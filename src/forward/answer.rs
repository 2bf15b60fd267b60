//! The last words to a client, in PostgreSQL's own protocol where the client speaks it.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::pgwire::{ENCRYPTION_REFUSED, First, MAX_STARTUP_LEN, Request, SqlState, fatal, first_request};
use crate::socket::Socket;

/// How long a client may take to ask for what it then is refused.
const ASK_PATIENCE: Duration = Duration::from_secs(5);

/// How long a client may take to read the last words and close.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// What a client may still send after its end, in bytes, before its connection is reset.
const FORGOTTEN: usize = 1 << 20;

/// Refuses a client that has no session yet: refuses encryption, since there is nobody to encrypt with, and then
/// says why. `first` is what the client has sent already.
pub(super) async fn refuse(socket: &mut Socket, first: Vec<u8>, code: SqlState, text: &str) {
    match timeout(ASK_PATIENCE, negotiate(socket, first)).await {
        Ok(Some(Request::Startup)) => {
            say(socket, code, text).await;
            finish(socket).await;
        }
        // Whoever asks for a cancellation waits for the end and for nothing else.
        Ok(Some(Request::Cancel)) => finish(socket).await,
        // An end without words would look like a good one.
        _ => {}
    }
}

/// Goes through the client's requests until it asks for more than encryption. None where it never does.
async fn negotiate(socket: &mut Socket, mut asked: Vec<u8>) -> Option<Request> {
    loop {
        match first_request(&asked) {
            First::Request(request @ (Request::Startup | Request::Cancel), _) => return Some(request),
            First::Request(Request::Ssl | Request::Gss, len) => {
                asked.drain(..len.min(asked.len()));
                socket.write_all(&[ENCRYPTION_REFUSED]).await.ok()?;
            }
            First::Incomplete => {
                let mut block = [0; 512];
                match socket.read(&mut block).await {
                    Ok(read) if read > 0 && asked.len() < MAX_STARTUP_LEN => {
                        asked.extend_from_slice(block.get(..read).unwrap_or_default());
                    }
                    _ => return None,
                }
            }
            First::DirectTls | First::Foreign => return None,
        }
    }
}

/// Sends a fatal error to a client that reads typed messages.
pub(super) async fn say(socket: &mut Socket, code: SqlState, text: &str) {
    // A client that does not take a few hundred bytes does not want to know.
    let _ = timeout(CLOSE_PATIENCE, socket.write_all(&fatal(code, text))).await;
}

/// Closes in good order: the client sees an end of data, and what it still sends is taken and forgotten, since the
/// kernel would otherwise reset the connection and might destroy what the client has not read.
pub(super) async fn finish(socket: &mut Socket) {
    socket.reset_on_drop(false);
    let farewell = async {
        if socket.shutdown().await.is_ok() {
            // On the heap: in the future it would be part of what each client takes, from its beginning to its end.
            let (mut block, mut forgotten) = (vec![0; 4 << 10], 0);
            while let Ok(read) = socket.read(&mut block).await
                && read > 0
                && forgotten < FORGOTTEN
            {
                forgotten += read;
            }
        }
    };
    let _ = timeout(CLOSE_PATIENCE, farewell).await;
}
