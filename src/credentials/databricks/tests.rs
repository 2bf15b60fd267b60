use std::sync::{Arc, Mutex as Shared};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// A workspace that numbers its tokens, and what it was asked.
struct Workspace {
    address: String,
    asked: Arc<Shared<Vec<String>>>,
    /// The only one of its tokens that still counts; any if none.
    valid: Arc<Shared<Option<usize>>>,
}

impl Workspace {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (asked, valid) = (Arc::<Shared<Vec<String>>>::default(), Arc::<Shared<Option<usize>>>::default());
        let (log, only) = (Arc::clone(&asked), Arc::clone(&valid));
        // It ends with the test's runtime.
        tokio::spawn(async move {
            let mut given = 0;
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let request = receive(&mut stream).await;
                let step = if request.starts_with("POST /oidc/v1/token ") { "token" } else { "credential" };
                log.lock().unwrap().push(step.to_owned());
                let bearer = |number: usize| request.contains(&format!("Bearer token{number}\r\n"));
                let (status, body) = match step {
                    "token" => {
                        given += 1;
                        (200, format!(r#"{{"access_token":"token{given}","expires_in":3600}}"#))
                    }
                    _ if only.lock().unwrap().is_some_and(|number| !bearer(number)) => (403, "{}".to_owned()),
                    _ => (200, r#"{"token":"t","expire_time":"2999-01-01T00:00:00Z"}"#.to_owned()),
                };
                let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            }
        });
        Self { address, asked, valid }
    }

    async fn mint(&self, lakebase: &Lakebase, client_id: &str) -> Result<Minted, Failure> {
        let plain = |text: &str| SecretSource::Plain(Secret::new(text.to_owned()));
        let (client_id, client_secret) = (plain(client_id), plain("hunter2"));
        let principal =
            Principal { workspace: &self.address, client_id: &client_id, client_secret: &client_secret };
        lakebase.mint(&principal, None, &LakebaseResource::Instance("orders".to_owned())).await
    }

    /// What was asked since the last time.
    fn asked(&self) -> String {
        std::mem::take(&mut *self.asked.lock().unwrap()).join(" ")
    }
}

async fn receive(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        stream.read_buf(&mut bytes).await.unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_lowercase();
        let length = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
        if body.len() >= length.parse().unwrap() {
            return text.into_owned();
        }
    }
}

#[tokio::test]
async fn the_workspaces_token_is_kept_for_the_next_login() {
    let (workspace, lakebase) = (Workspace::start().await, Lakebase::default());
    let minted = workspace.mint(&lakebase, "me").await.unwrap();
    assert_eq!((minted.login.user.as_str(), workspace.asked().as_str()), ("me", "token credential"));
    workspace.mint(&lakebase, "me").await.unwrap();
    assert_eq!(workspace.asked(), "credential");
    // It is the client's own.
    let minted = workspace.mint(&lakebase, "another").await.unwrap();
    assert_eq!((minted.login.user.as_str(), workspace.asked().as_str()), ("another", "token credential"));
}

#[tokio::test]
async fn a_revoked_token_is_replaced_at_once() {
    let (workspace, lakebase) = (Workspace::start().await, Lakebase::default());
    workspace.mint(&lakebase, "me").await.unwrap();
    workspace.asked();
    *workspace.valid.lock().unwrap() = Some(2);
    workspace.mint(&lakebase, "me").await.unwrap();
    assert_eq!(workspace.asked(), "credential token credential");
    // A new one that is refused too says that it is not the token.
    *workspace.valid.lock().unwrap() = Some(0);
    for expected in ["credential token credential", "token credential"] {
        let failure = workspace.mint(&lakebase, "me").await.unwrap_err();
        assert_eq!(failure.cause, Cause::CredentialsDenied);
        assert_eq!(workspace.asked(), expected);
    }
}

#[tokio::test]
async fn a_token_is_used_for_four_fifths_of_its_life() {
    let workspace = Workspace::start().await;
    let secret = |text: &str| Secret::new(text.to_owned());
    let client = Client { id: secret("me"), secret: secret("hunter2") };
    let before = Instant::now();
    let token = workspace_token(&workspace.address, &client).await.unwrap();
    assert!(token.is_for(&client, before + Duration::from_secs(2879)));
    assert!(!token.is_for(&client, Instant::now() + Duration::from_secs(2880)));
}

#[test]
fn request_ids_differ() {
    assert_ne!(request_id(), request_id());
}
