//! Stands in for a service that many databases share one address of, as Lakebase's and Neon's do: it learns from the name
//! in the TLS handshake (SNI) which database is meant, and refuses whoever gives none. Behind it is a real PostgreSQL.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::authority::Authority;
use super::runtime;

/// What it tells those that it cannot place.
pub const UNSPECIFIED: &str = "Endpoint ID is not specified";

/// Length and code of SSLRequest (PostgreSQL 17, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

pub struct SniRouter {
    pub port: u16,
    dir: TempDir,
    seen: Arc<Mutex<Vec<Option<String>>>>,
    /// Ends all connections when it is dropped.
    _runtime: Runtime,
}

impl SniRouter {
    /// Serves the database at port `database` of this machine to whoever asks for `endpoint`, for which its certificate is.
    pub fn start(endpoint: &str, database: u16) -> Self {
        let (dir, authority) = (TempDir::with_prefix("sni-").unwrap(), Authority::new("a public authority"));
        authority.write(&dir.path().join("ca.crt"));
        let issued = authority.issue(&[endpoint]);
        let certificate = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let (runtime, seen) = (runtime(), Arc::default());
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router { tls: Arc::new(config).into(), endpoint: endpoint.to_owned(), database };
        runtime.spawn(router.accept(listener, Arc::clone(&seen)));
        Self { port, dir, seen, _runtime: runtime }
    }

    /// The certificate of the authority that signed the server's.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// The names that were given, one for each finished handshake.
    pub fn seen(&self) -> Vec<Option<String>> {
        self.seen.lock().unwrap().clone()
    }
}

#[derive(Clone)]
struct Router {
    tls: TlsAcceptor,
    endpoint: String,
    database: u16,
}

impl Router {
    async fn accept(self, listener: TcpListener, seen: Arc<Mutex<Vec<Option<String>>>>) {
        while let Ok((client, _)) = listener.accept().await {
            let (router, seen) = (self.clone(), Arc::clone(&seen));
            // Whoever leaves in the middle has nothing to be told.
            tokio::spawn(async move { router.serve(client, &seen).await.ok() });
        }
    }

    async fn serve(&self, mut client: TcpStream, seen: &Mutex<Vec<Option<String>>>) -> std::io::Result<()> {
        let mut request = [0; 8];
        loop {
            client.read_exact(&mut request).await?;
            if request == SSL_REQUEST {
                break;
            }
            // A request for GSS encryption is as long; anything else is a session without TLS, which it has none of.
            client.write_all(b"N").await?;
        }
        client.write_all(b"S").await?;
        let mut client = self.tls.accept(client).await?;
        let name = client.get_ref().1.server_name().map(str::to_owned);
        seen.lock().unwrap().push(name.clone());
        if name.as_deref() != Some(self.endpoint.as_str()) {
            // It has to be asked for something before it may answer.
            client.read_u8().await?;
            client.write_all(&error(UNSPECIFIED)).await?;
            return client.shutdown().await;
        }
        let mut database = TcpStream::connect(("127.0.0.1", self.database)).await?;
        copy_bidirectional(&mut client, &mut database).await.map(drop)
    }
}

/// ErrorResponse.
fn error(text: &str) -> Vec<u8> {
    let fields = format!("SFATAL\0VFATAL\0C08004\0M{text}\0\0");
    let mut message = vec![b'E'];
    message.extend(u32::try_from(fields.len() + 4).unwrap().to_be_bytes());
    message.extend(fields.as_bytes());
    message
}
