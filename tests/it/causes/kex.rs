//! Algorithms that both sides know.

use super::{bastion_fails, says};
use crate::support::Bastion;
use crate::support::account::account;
use crate::support::bastion::make_key;

super::cases! {
    the_line_that_brings_an_algorithm_back_is_named:
        [KexNoCommonAlgorithm, KexNoCommonAlgorithm, KexNoCommonAlgorithm, KexNoCommonAlgorithm] =>
    {
        let dir = tempfile::TempDir::with_prefix("host-").unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let rsa = make_key(dir.path(), "host", &["-t", "rsa", "-b", "2048", "-N", ""]);
        account().give(&rsa);
        let sha1 = format!("HostKey {}\nHostKeyAlgorithms ssh-rsa", rsa.display());
        [
            (
                "KexAlgorithms diffie-hellman-group14-sha1",
                "key exchange",
                "`KexAlgorithms +curve25519-sha256`",
            ),
            ("Ciphers aes256-cbc", "cipher", "`Ciphers +aes128-gcm@openssh.com`"),
            ("Ciphers aes128-ctr\nMACs umac-64@openssh.com", "MAC", "`MACs +hmac-sha2-512-etm@openssh.com`"),
            (&sha1, "host key", "`HostKeyAlgorithms +rsa-sha2-512`"),
        ]
        .map(|(lines, list, remedy)| {
            let bastion = Bastion::with(lines);
            let failure = bastion_fails(&bastion.section("prod", bastion.port));
            let theirs = lines.rsplit_once(' ').unwrap().1;
            let at = format!("127.0.0.1:{}", bastion.port);
            says(failure, &format!("no common {list} algorithm with {at}: it offers {theirs}"), remedy)
        })
    }
}
