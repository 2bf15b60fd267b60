//! From a host name to a verified SSH transport, under one deadline: look-up, a race of all addresses, greeting,
//! key exchange, host key.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use russh::{Limits, Preferred, SshId, client};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::algorithms::{nothing_in_common, preferred};
use super::channel::Connection;
use super::gate::{Gate, OwnGate};
use super::greeting::Greeting;
use super::guard::{Guard, HandlerError, Obituary, Scrutiny, of_jump};
use super::host_key::{Announced, Seen};
use super::jump::Jump;
use super::pins::ask_for_others;
use super::proxy::Proxy;
use super::transport::{self, Socket, Transport};
use crate::failure::{Cause, Failure, plain};
use crate::host_keys::{HostKey, Trust};
use crate::ids::{HostPort, Target};
use crate::milestones::{Milestone, Milestones};
use crate::settings::plan::BastionPlan;

/// How long an address is given before the next one is tried beside it: RFC 8305 section 5, "Connection Attempt
/// Delay".
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Half-read keys are never of use; larger lists of addresses only delay the verdict.
const MAX_ADDRESSES: usize = 16;

/// Connected and verified, not logged in.
pub struct Connected {
    pub(super) gate: OwnGate,
    pub(super) handle: client::Handle<Guard>,
    pub(super) bastion: HostPort,
    pub(super) obituary: Arc<Obituary>,
    pub(super) refusal: Arc<Mutex<Option<String>>>,
    pub(super) announced: Announced,
    pub(super) legacy_algorithms: bool,
    pub(super) milestones: Milestones,
    /// The host key that it has shown.
    pub seen: Seen,
    /// The address that won the race, where there was one.
    pub address: Option<SocketAddr>,
}

/// Connects to a bastion, through a session of its jump where it has one, and verifies its host key. All traffic goes
/// through `gate`, or another one for the same session; a silent peer is given up by the kernel after the bastion's
/// `keepalive_timeout`.
///
/// # Errors
/// `dns`, `tcp`, `banner`, `kex` and `host_key` failures, and `channel` failures of the jump. The connection is gone
/// then, and also where the future or what it returned is dropped.
pub async fn connect(
    plan: &BastionPlan,
    through: Option<&Connection>,
    trust: Arc<Trust>,
    gate: Arc<Gate>,
    deadline: Instant,
    milestones: &Milestones,
) -> Result<Connected, Failure> {
    let preferred = preferred(&trust, &plan.at, plan.legacy_algorithms);
    let refused: Arc<OnceLock<HostKey>> = Arc::default();
    let scrutiny = Scrutiny::Judge(Arc::clone(&trust), Arc::clone(&refused));
    let met = meet(plan, through, preferred, scrutiny, Arc::clone(&gate), deadline, milestones).await;
    match (&*trust, refused.get()) {
        (Trust::Pins(pins), Some(key)) => {
            ask_for_others(plan, through, &trust, (pins, key), &gate, deadline, milestones).await
        }
        _ => met,
    }
}

/// Connects to a bastion and subjects its host key to `scrutiny`.
pub(super) async fn meet(
    plan: &BastionPlan,
    through: Option<&Connection>,
    preferred: Preferred,
    scrutiny: Scrutiny,
    gate: Arc<Gate>,
    deadline: Instant,
    milestones: &Milestones,
) -> Result<Connected, Failure> {
    let bastion = &plan.at;
    let guard = Guard::new(bastion.clone(), scrutiny, gate, milestones.clone());
    if let Some(outer) = through {
        let jump = open_jump(outer, plan).await?;
        milestones.tell(|| Milestone::Connected { to: None, from: None });
        return shake_hands(plan, jump, config(preferred), guard, deadline).await;
    }
    if let Some(argv) = &plan.proxy_command {
        let (proxy, fate) = Proxy::start(argv, bastion, &plan.user)?;
        return match shake_hands(plan, proxy, config(preferred), guard, deadline).await {
            // The bastion has not been heard, so it is the command that is to blame.
            Err(failure) if failure.cause == Cause::BannerClosed => Err(fate.explain(bastion).await),
            connected => connected,
        };
    }
    let addresses = resolve(bastion, deadline).await?;
    milestones.tell(|| Milestone::Resolved(addresses.clone()));
    let (socket, address) = race(bastion, addresses, deadline).await?;
    milestones.tell(|| Milestone::Connected { to: Some(address), from: socket.local_addr().ok() });
    prepare(&socket, plan.keepalive_timeout);
    let connected = shake_hands(plan, socket, config(preferred), guard, deadline).await?;
    Ok(Connected { address: Some(address), ..connected })
}

/// Opens a channel to the next bastion.
async fn open_jump(outer: &Connection, plan: &BastionPlan) -> Result<Jump, Failure> {
    let bastion = &plan.at;
    let opened = outer.open(&Target::Tcp(bastion.clone()), plan.connect_timeout).await;
    let (inbound, outbound) = opened.map_err(|failure| match failure.cause {
        Cause::ChannelProhibited => failure.with_hint(format!(
            "let the jump forward to {bastion}: see PermitOpen and AllowTcpForwarding in its sshd_config, and permitopen in \
             its authorized_keys (`tunnelkeeper keygen` of the jump prints the lines)"
        )),
        Cause::ChannelTimeout => failure.with_hint(format!(
            "the jump cannot reach {bastion}: check `host` and `port`, the jump's DNS, and the security group of that bastion"
        )),
        _ => failure,
    })?;
    Ok(Jump::new(Arc::clone(outer.gate()), inbound, outbound))
}

async fn shake_hands<S: Socket + Send + 'static>(
    plan: &BastionPlan,
    socket: S,
    config: client::Config,
    guard: Guard,
    deadline: Instant,
) -> Result<Connected, Failure> {
    let BastionPlan { at: bastion, legacy_algorithms, .. } = plan;
    let legacy_algorithms = *legacy_algorithms;
    let milestones = guard.milestones();
    let greeting = Arc::new(Mutex::new(Greeting::new(milestones.clone())));
    let (gate, seen, announced) = (OwnGate(guard.gate()), guard.seen(), guard.announced());
    let (obituary, refusal) = (guard.obituary(), guard.refusal());
    let transport = Transport::new(socket, Arc::clone(&gate), Arc::clone(&greeting));
    match timeout_at(deadline, client::connect_stream(Arc::new(config), transport, guard)).await {
        Ok(Ok(handle)) => {
            let Some(seen) = seen.get().cloned() else {
                // It never comes to that: no key exchange that we offer does without.
                return Err(Failure::new(Cause::KexProtocol, format!("{bastion} has shown no host key")));
            };
            let (bastion, address) = (bastion.clone(), None);
            Ok(Connected {
                gate,
                handle,
                bastion,
                obituary,
                refusal,
                announced,
                legacy_algorithms,
                milestones,
                seen,
                address,
            })
        }
        Ok(Err(error)) => {
            let greeting = transport::lock(&greeting);
            Err(if greeting.is_complete() {
                handshake_failure(bastion, error, obituary.read(), legacy_algorithms)
            } else {
                greeting_failure(bastion, &greeting, &error)
            })
        }
        Err(_) => {
            let greeting = transport::lock(&greeting);
            Err(if greeting.is_complete() {
                Failure::new(Cause::KexTimeout, format!("{bastion} did not finish the key exchange in time"))
            } else if greeting.is_begun() {
                let text = format!("{bastion} began to greet, and did not come to an end in time");
                Failure::new(Cause::BannerTimeout, text)
            } else if greeting.is_heard() {
                greeting.failure(bastion)
            } else {
                Failure::new(
                    Cause::BannerTimeout,
                    format!("{bastion} accepted the connection and said nothing"),
                )
            })
        }
    }
}

async fn resolve(bastion: &HostPort, deadline: Instant) -> Result<Vec<SocketAddr>, Failure> {
    let host = &bastion.host;
    match timeout_at(deadline, tokio::net::lookup_host((&**host, bastion.port))).await {
        Ok(Ok(addresses)) => {
            let addresses = interleave(addresses.collect());
            if addresses.is_empty() {
                return Err(Failure::new(Cause::DnsNotFound, format!("\"{host}\" has no address")));
            }
            Ok(addresses)
        }
        Ok(Err(error)) => {
            let text = error.to_string();
            // getaddrinfo's verdict reaches us as text only.
            let passing = text.contains("Temporary failure") || text.contains("System error");
            let cause = if passing { Cause::DnsFailed } else { Cause::DnsNotFound };
            let text = text.trim_start_matches("failed to lookup address information: ");
            Err(Failure::new(cause, format!("\"{host}\" cannot be resolved: {text}")))
        }
        Err(_) => {
            Err(Failure::new(Cause::DnsTimeout, format!("no answer to the look-up of \"{host}\" in time")))
        }
    }
}

/// Both address families in turn, the resolver's first choice first (RFC 8305 section 4).
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_family = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_family);
    let mut second = second.into_iter();
    let mut mixed: Vec<SocketAddr> = Vec::new();
    for address in first {
        mixed.push(address);
        mixed.extend(second.next());
    }
    mixed.extend(second);
    mixed.truncate(MAX_ADDRESSES);
    mixed
}

type Attempt = (SocketAddr, io::Result<TcpStream>);

/// Tries the addresses one after another, the next one when the last has failed or taken [`ATTEMPT_DELAY`], and
/// takes the first that connects.
async fn race(
    bastion: &HostPort,
    addresses: Vec<SocketAddr>,
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), Failure> {
    let mut attempts: JoinSet<Attempt> = JoinSet::new();
    let mut waiting = addresses.into_iter();
    let mut errors: Vec<(SocketAddr, io::Error)> = Vec::new();
    let mut next_at = Instant::now();
    loop {
        if Instant::now() >= next_at
            && let Some(address) = waiting.next()
        {
            attempts.spawn(async move { (address, TcpStream::connect(address).await) });
            next_at = Instant::now() + ATTEMPT_DELAY;
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(deadline) => {
                let mut detail = format!("no address of {bastion} answered in time");
                append_errors(&mut detail, bastion, &errors);
                return Err(Failure::new(Cause::TcpTimeout, detail));
            }
            finished = attempts.join_next(), if !attempts.is_empty() => match finished {
                Some(Ok((address, Ok(socket)))) => return Ok((socket, address)),
                Some(Ok((address, Err(error)))) => {
                    errors.push((address, error));
                    next_at = Instant::now();
                }
                // An attempt only ends early when the runtime does.
                Some(Err(_)) | None => {}
            },
            () = tokio::time::sleep_until(next_at), if waiting.len() > 0 => {}
        }
        if attempts.is_empty() && waiting.len() == 0 {
            return Err(tcp_failure(bastion, &errors));
        }
    }
}

fn tcp_failure(bastion: &HostPort, errors: &[(SocketAddr, io::Error)]) -> Failure {
    let cause = errors.first().map_or(Cause::TcpUnreachable, |(_, error)| match error.kind() {
        io::ErrorKind::ConnectionRefused => Cause::TcpRefused,
        io::ErrorKind::TimedOut => Cause::TcpTimeout,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Cause::TcpReset,
        _ => Cause::TcpUnreachable,
    });
    let mut detail = format!("cannot connect to {bastion}");
    append_errors(&mut detail, bastion, errors);
    let failure = Failure::new(cause, detail);
    match errors.first() {
        Some((_, error)) => failure.from_system(error),
        None => failure,
    }
}

/// The address is named only where the host's name does not say it already.
fn append_errors(detail: &mut String, bastion: &HostPort, errors: &[(SocketAddr, io::Error)]) {
    for (index, (address, error)) in errors.iter().enumerate() {
        detail.push_str(if index == 0 { ": " } else { "; " });
        if address.to_string() != bastion.to_string() {
            detail.push_str(&format!("{address}: "));
        }
        detail.push_str(&plain(error));
    }
}

/// Small packets leave at once, and the kernel gives up a peer that acknowledges nothing for `silence`, also while
/// we wait to write. A kernel that refuses an option serves us less well, but serves.
fn prepare(socket: &TcpStream, silence: Duration) {
    let options = SockRef::from(socket);
    let _ = options.set_tcp_nodelay(true);
    let _ = options.set_keepalive(true);
    let _ = options.set_tcp_user_timeout(Some(silence));
}

/// The receive window of a channel, in bytes: twice what a Linux bastion can have on its way to us as it is set up
/// (`net.ipv4.tcp_wmem`, 4 MiB with the kernel's own overhead), since russh renews half a window at a time. What the
/// connection cannot carry of a larger one piles up in sshd, which moves all of it about with each packet: over 50 ms, a
/// window of 16 MiB cost sshd ten times the processor time and was slower (OpenSSH 9.2). It is not made to follow the round
/// trip of TCP, which ends at the first relay on the way.
const WINDOW: u32 = 5 << 20;

fn config(preferred: Preferred) -> client::Config {
    client::Config {
        client_id: SshId::Standard(Cow::Borrowed(concat!(
            "SSH-2.0-tunnelkeeper_",
            env!("CARGO_PKG_VERSION")
        ))),
        // A rekey that we begin can break a session with several busy channels (russh counts what is in flight on
        // all of them against one window), so we leave it to the bastion: sshd begins one after 64 GiB. Ours is
        // the last resort for a server that never does, and stays below 2^32 packets of 32 bytes, the smallest
        // there are, as chacha20-poly1305 needs.
        limits: Limits {
            rekey_write_limit: 96 << 30,
            rekey_read_limit: 96 << 30,
            rekey_time_limit: Duration::from_secs(365 * 24 * 3600),
        },
        window_size: WINDOW,
        // As much as russh takes without complaint: fewer packets cost both sides less.
        maximum_packet_size: 65_535,
        // The gate bounds what waits, by bytes; a queue that filled up by messages would stop the whole session.
        channel_buffer_size: usize::MAX >> 4,
        preferred,
        // Pings, deadlines and the kernel's user timeout are ours: russh's own would condemn a session whose gate
        // is shut.
        keepalive_interval: None,
        inactivity_timeout: None,
        ..client::Config::default()
    }
}

fn greeting_failure(bastion: &HostPort, greeting: &Greeting, error: &HandlerError) -> Failure {
    if let HandlerError::Ssh(russh::Error::IO(error)) = error
        && let Some(failure) = of_jump(error)
    {
        return failure;
    }
    match error {
        HandlerError::Ssh(russh::Error::IO(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
            let failure = greeting.failure(bastion);
            if !greeting.is_heard() {
                return Failure::new(
                    Cause::BannerClosed,
                    format!("{bastion} reset the connection without a word"),
                );
            }
            failure
        }
        _ => greeting.failure(bastion),
    }
}

/// `last_words` is what the bastion said when it disconnected, if it did.
fn handshake_failure(
    bastion: &HostPort,
    error: HandlerError,
    last_words: Option<Failure>,
    legacy_algorithms: bool,
) -> Failure {
    let error = match error {
        HandlerError::Refused(failure) => return failure,
        HandlerError::Ssh(error) => error,
    };
    if let russh::Error::IO(error) = &error
        && let Some(failure) = of_jump(error)
    {
        return failure;
    }
    match error {
        russh::Error::NoCommonAlgo { kind, ours, theirs } => {
            nothing_in_common(bastion, &kind, &ours, &theirs, legacy_algorithms)
        }
        russh::Error::IO(error) if is_end(&error) => {
            Failure::new(Cause::KexClosed, format!("{bastion} closed the connection during the key exchange"))
        }
        // russh's word for a disconnection, and for a packet too short to be one.
        russh::Error::Disconnect => match last_words.filter(|words| words.cause == Cause::SessionClosed) {
            Some(words) => {
                Failure::new(Cause::KexClosed, format!("during the key exchange, {}", words.detail()))
            }
            None => Failure::new(Cause::KexProtocol, format!("{bastion} sent what is no SSH packet")),
        },
        other => Failure::new(Cause::KexProtocol, format!("the key exchange with {bastion} failed: {other}")),
    }
}

fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let mixed = interleave(parse(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"]));
        assert_eq!(mixed, parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]));
        assert_eq!(interleave(Vec::new()), []);
    }

    #[tokio::test]
    async fn a_dead_address_does_not_delay_a_live_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = {
            let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            taken.local_addr().unwrap()
        };
        let live = listener.local_addr().unwrap();
        let bastion = HostPort::new("localhost", live.port());
        let deadline = Instant::now() + Duration::from_secs(10);
        let (_, address) = race(&bastion, vec![dead, live], deadline).await.unwrap();
        assert_eq!(address, live);
        let failure = race(&bastion, vec![dead], deadline).await.unwrap_err();
        assert_eq!(failure.cause, Cause::TcpRefused);
        assert!(failure.detail().contains(&dead.to_string()), "{failure}");
    }

    #[tokio::test]
    async fn an_unknown_name_is_said_to_be_unknown() {
        let bastion = HostPort::new("no-such-host.invalid", 22);
        let failure = resolve(&bastion, Instant::now() + Duration::from_secs(60)).await.unwrap_err();
        assert!(matches!(failure.cause, Cause::DnsNotFound | Cause::DnsFailed), "{failure}");
        assert!(failure.detail().starts_with("\"no-such-host.invalid\" cannot be resolved"), "{failure}");
    }
}
