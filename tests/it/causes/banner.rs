//! What answers in place of an sshd.

use std::io::Write;

use super::{bastion_fails, says, server};
use crate::support::{Bastion, Postgres, tunnel};

super::cases! {
    another_server_at_the_port: [BannerNotSsh, BannerNotSsh, BannerClosed] => {
        let bastion = Bastion::start();
        let (_behind, web) = tunnel("", &Postgres::shared().unprobed_section("analytics", "prod"));
        let port = web.url().rsplit_once(':').unwrap().1.parse().unwrap();
        let of_web = bastion_fails(&bastion.section("prod", port));
        // What OpenSSL says to whoever does not begin with TLS.
        let tls = server(|mut socket| socket.write_all(b"\x15\x03\x01\0\x02\x02\x46").unwrap());
        let of_tls = bastion_fails(&bastion.section("prod", tls));
        // It hangs up on what is no start of its protocol.
        let of_postgres = bastion_fails(&bastion.section("prod", Postgres::shared().port));
        [
            says(of_web, "a web server answers at 127.0.0.1:", "check the bastion's `port`"),
            says(of_tls, "a TLS server answers at 127.0.0.1:", "check the bastion's `port`"),
            says(of_postgres, "without a word", "PostgreSQL closes like this"),
        ]
    }
}
