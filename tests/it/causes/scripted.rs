//! An SSH server for what no sshd does.

use std::fs;
use std::sync::Arc;

use russh::keys::{Algorithm, PrivateKey};
use russh::server::{self, Handler};
use russh::{MethodKind, MethodSet};
use tokio::runtime::Runtime;

use crate::support::{Bastion, runtime};

pub struct Scripted {
    /// `[bastions.prod]`.
    pub section: String,
    /// Its files, and the key that it is shown.
    pub bastion: Bastion,
    _runtime: Runtime,
}

impl Scripted {
    /// Serves each connection with a handler of its own.
    pub fn start<H>(handler: fn() -> H, change: impl FnOnce(&mut server::Config)) -> Self
    where
        H: Handler + Send + 'static,
        H::Error: std::fmt::Debug,
    {
        let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap();
        let public = key.public_key().to_openssh().unwrap();
        let mut config = server::Config {
            keys: vec![key],
            methods: MethodSet::from(&[MethodKind::PublicKey][..]),
            auth_rejection_time: std::time::Duration::ZERO,
            ..server::Config::default()
        };
        change(&mut config);
        let config = Arc::new(config);
        let runtime = runtime();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let session = server::run_stream(Arc::clone(&config), socket, handler());
                tokio::spawn(async move {
                    if let Ok(session) = session.await {
                        let _ = session.await;
                    }
                });
            }
        });
        let bastion = Bastion::start();
        let section = bastion.section("prod", port);
        let known_hosts = bastion.path(&format!("known_hosts.prod.{port}"));
        fs::write(known_hosts, format!("[127.0.0.1]:{port} {public}\n")).unwrap();
        Self { section, bastion, _runtime: runtime }
    }
}
