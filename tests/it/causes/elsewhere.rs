//! What tests of other files prove.

use tunnelkeeper::failure::Cause::{self, *};

use super::Case;

const fn of(file: &'static str, test: &'static str, causes: &'static [Cause]) -> Case {
    Case { file, test, causes }
}

pub const CASES: &[Case] = &[
    of(EXPLAINED, "nothing_listens_there_and_no_key_is_here", &[TcpRefused, AuthIdentityUnreadable]),
    of(EXPLAINED, "what_answers_is_not_ssh_or_hangs_up", &[BannerNotSsh, BannerClosed, BannerBusy]),
    of(EXPLAINED, "a_busy_bastion_is_left_alone_for_ten_seconds", &[BannerBusy]),
    of(EXPLAINED, "no_common_algorithm", &[KexNoCommonAlgorithm]),
    of(EXPLAINED, "a_connection_cut_within_the_handshake", &[KexClosed]),
    of(
        EXPLAINED,
        "host_keys_that_are_unknown_changed_or_revoked",
        &[HostKeyUnknown, HostKeyChanged, HostKeyRevoked],
    ),
    of(EXPLAINED, "a_wrong_key_shows_the_right_one_and_is_offered_three_times", &[AuthRejected]),
    of(EXPLAINED, "too_many_keys", &[AuthTooManyFailures]),
    of(EXPLAINED, "a_forward_that_is_prohibited", &[ChannelProhibited]),
    of(EXPLAINED, "a_database_port_that_is_closed", &[ChannelConnectFailed]),
    of(
        EXPLAINED,
        "a_probe_with_a_wrong_password_or_database",
        &[
            DbTlsNameMismatch,
            DbTlsUnknownIssuer,
            DbLoginRejected,
            DbLoginNoHbaEntry,
            DbLoginUnknownDatabase,
            DbLoginUnsupportedMethod,
        ],
    ),
    of(EXPLAINED, "a_probe_without_a_password", &[CredentialsMissing]),
    of("tests/it/ways.rs", "a_bastion_behind_a_command", &[TcpProxyCommandFailed]),
    of("tests/it/ways.rs", "a_command_that_does_not_exist_and_one_that_is_silent", &[BannerTimeout]),
    of("tests/it/hostile.rs", "bastions_that_speak_nonsense", &[KexTimeout, KexProtocol]),
    of("tests/it/host_keys.rs", "certificates_are_judged_as_ssh_judges_them", &[HostKeyCertificateInvalid]),
    of("tests/it/host_keys.rs", "nothing_is_learnt_where_it_cannot_be_kept", &[HostKeyUnreadable]),
    of("tests/it/logins.rs", "an_sshd_of_long_ago", &[KexNoCommonAlgorithm]),
    of(
        "tests/it/logins.rs",
        "passphrases_that_are_missing_wrong_or_of_no_use",
        &[AuthPassphrase, AuthSecret],
    ),
    of("tests/it/agents.rs", "what_is_wrong_with_an_agent_is_named", &[AuthAgent]),
    of(CERTIFICATES, "a_certificate_whose_time_is_over_or_not_come_is_not_shown", &[AuthCertificateExpired]),
    of(CERTIFICATES, "what_is_wrong_with_a_certificate_is_named", &[AuthRejected]),
    of(PASSWORDS, "the_step_that_is_missing_is_named", &[AuthRejected]),
    of(PASSWORDS, "a_password_that_has_expired", &[AuthPasswordExpired]),
    of(PASSWORDS, "a_bastion_that_never_decides_is_left", &[AuthTimeout]),
    of("tests/it/half_open.rs", "suspect_then_lost_and_passed_by_meanwhile", &[SessionKeepaliveTimeout]),
    of("tests/it/jumps.rs", "a_chain_whose_middle_is_killed_under_load", &[SessionClosed]),
    of(
        "tests/it/aws.rs",
        "what_goes_wrong_is_told_apart",
        &[
            CredentialsDenied,
            CredentialsUnreachable,
            CredentialsExpired,
            CredentialsClockSkew,
            CredentialsInvalidAnswer,
        ],
    ),
    of(
        "tests/it/kinds.rs",
        "a_certificate_that_does_not_do_says_why",
        &[DbTlsNameMismatch, DbTlsUnknownIssuer, DbTlsExpired],
    ),
    of("tests/it/stalled.rs", "five_that_stall_on_four_sessions", &[ClientStalled]),
    of("tests/it/lifetime.rs", "past_the_drain_timeout_it_is_cut_and_said", &[ClientDrained]),
];

const EXPLAINED: &str = "tests/it/explained.rs";
const PASSWORDS: &str = "tests/it/passwords.rs";
const CERTIFICATES: &str = "tests/it/certificates.rs";
