//! On which side a failure is mended.

use crate::failure::Cause;

/// Who has to change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This machine: its files, its resolver, its clock, its agent.
    Machine,
    /// The configuration.
    Configuration,
    /// The bastion: its sshd, its accounts, its load.
    Bastion,
    /// What lies between: routes, firewalls, load balancers, security groups.
    Network,
    /// The database.
    Database,
    /// The service that makes its logins.
    Cloud,
}

impl Side {
    /// Where a cause is mended first. There may be more than one place; the hint tells.
    #[must_use]
    #[allow(clippy::enum_glob_use, reason = "a list of them all")]
    pub fn of(cause: Cause) -> Self {
        use Cause::*;
        match cause {
            DnsTimeout | DnsFailed => Self::Machine,
            DnsNotFound => Self::Configuration,
            TcpRefused => Self::Bastion,
            TcpUnreachable | TcpTimeout | TcpReset => Self::Network,
            TcpProxyCommandFailed => Self::Configuration,
            BannerTimeout | BannerClosed | BannerBusy => Self::Bastion,
            BannerNotSsh => Self::Configuration,
            KexNoCommonAlgorithm | KexClosed | KexProtocol => Self::Bastion,
            KexTimeout => Self::Network,
            HostKeyUnknown | HostKeyChanged | HostKeyUnreadable => Self::Machine,
            HostKeyRevoked | HostKeyCertificateInvalid => Self::Bastion,
            AuthRejected | AuthPasswordExpired | AuthTimeout | AuthClosed => Self::Bastion,
            AuthNoIdentity | AuthPassphrase | AuthTooManyFailures => Self::Configuration,
            AuthIdentityUnreadable | AuthAgent | AuthCertificateExpired | AuthSecret => Self::Machine,
            SessionKeepaliveTimeout | SessionReset => Self::Network,
            SessionClosed | SessionProtocol | SessionNotEstablished => Self::Bastion,
            ChannelProhibited | ChannelResourceShortage | ChannelSessionLost => Self::Bastion,
            // Of the database: its security group has to let the bastion in.
            ChannelConnectFailed | ChannelTimeout => Self::Database,
            CredentialsMissing | CredentialsUnreachable | CredentialsClockSkew => Self::Machine,
            CredentialsDenied | CredentialsExpired => Self::Cloud,
            CredentialsInvalidAnswer => Self::Configuration,
            DbTlsRefused | DbTlsExpired | DbTlsTimeout | DbTlsFailed => Self::Database,
            DbTlsNameMismatch | DbTlsUnknownIssuer => Self::Configuration,
            DbLoginRejected | DbLoginUnknownDatabase | DbLoginNotPostgres => Self::Configuration,
            DbLoginNoHbaEntry | DbLoginTooManyConnections | DbLoginStarting | DbLoginUnsupportedMethod => {
                Self::Database
            }
            DbLoginTimeout | DbLoginClosed | DbLoginOther => Self::Database,
            DbQueryTimeout | DbQueryError | DbQueryClosed => Self::Database,
            ClientStalled | ClientIdle => Self::Machine,
            ClientDrained | ClientLimit | ClientHoldTimeout => Self::Configuration,
        }
    }

    /// For people.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Machine => "this machine",
            Self::Configuration => "the configuration",
            Self::Bastion => "the bastion",
            Self::Network => "the network",
            Self::Database => "the database",
            Self::Cloud => "the cloud",
        }
    }

    /// For programs.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Configuration => "configuration",
            Self::Bastion => "bastion",
            Self::Network => "network",
            Self::Database => "database",
            Self::Cloud => "cloud",
        }
    }
}
