use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::settings::plan::ListenPlan;

fn plan(at: Vec<LocalAddress>) -> ListenPlan {
    let at = at.into_iter().map(ListenAt::Address).collect();
    ListenPlan { at, socket_mode: 0o660, socket_group: None, allow_remote_clients: false }
}

fn stake(plan: &ListenPlan) -> Result<Bound, String> {
    let claims = Claims::default().stake(plan).map_err(|error| error.to_string())?;
    Bound::new(claims).map_err(|error| error.to_string())
}

fn bind(at: Vec<LocalAddress>) -> Result<Bound, String> {
    stake(&plan(at))
}

fn socket(path: &Path) -> Result<Bound, String> {
    bind(vec![LocalAddress::Unix(path.to_owned())])
}

fn place() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(".s.PGSQL.5432");
    (dir, path)
}

#[tokio::test]
async fn all_addresses_accept() {
    let (_dir, path) = place();
    let tcp = ["127.0.0.1:0", "[::1]:0"].map(|any| LocalAddress::Tcp(any.parse().unwrap()));
    let mut bound = bind([&tcp[..], &[LocalAddress::Unix(path)]].concat()).unwrap();
    for address in bound.addresses().cloned().collect::<Vec<_>>() {
        let from = match &address {
            LocalAddress::Tcp(address) => {
                assert_ne!(address.port(), 0);
                Peer::Tcp(TcpStream::connect(address).await.unwrap().local_addr().unwrap())
            }
            LocalAddress::Unix(path) => {
                UnixStream::connect(path).await.unwrap();
                let command = fs::read_to_string("/proc/self/comm").unwrap().trim().to_owned();
                let uid = nix::unistd::geteuid().as_raw();
                Peer::Process { pid: Some(std::process::id()), command: Some(command), uid }
            }
        };
        assert_eq!(bound.accept().await.1, from);
    }
}

#[tokio::test]
async fn whoever_waits_in_the_end_is_accepted_where_nobody_else_does() {
    let (_dir, path) = place();
    let at = vec![LocalAddress::Tcp("127.0.0.1:0".parse().unwrap()), LocalAddress::Unix(path.clone())];
    let bound = bind(at).unwrap();
    let tcp = bound.addresses().find_map(LocalAddress::tcp).unwrap();
    let clients = [(); 3].map(|()| std::net::TcpStream::connect(tcp).unwrap());
    let _local = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let held = bound.claims.clone();
    assert!(bound.end().is_empty(), "somebody else would have accepted them");
    let waiting: Vec<Peer> = Bound::new(held).unwrap().end().into_iter().map(|(_, peer)| peer).collect();
    let expected = clients.map(|client| Peer::Tcp(client.local_addr().unwrap()));
    assert_eq!(waiting[..3], expected);
    assert!(matches!(waiting[3..], [Peer::Process { .. }]), "{waiting:?}");
    assert!(!path.exists() && TcpStream::connect(tcp).await.is_err());
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let first = Bound::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let taken = first.addresses().next().unwrap().clone();
    let error = bind(vec![taken.clone()]).unwrap_err();
    assert_eq!(error, format!("{taken} is in use by another program: stop it, or listen elsewhere"));

    let (_dir, path) = place();
    let _first = socket(&path).unwrap();
    let error = socket(&path).unwrap_err();
    let path = path.display();
    assert_eq!(error, format!("unix:{path} is in use by another program: stop it, or listen elsewhere"));
    assert!(std::os::unix::net::UnixStream::connect(path.to_string()).is_ok());
}

#[tokio::test]
async fn a_socket_has_its_mode_and_is_removed_in_the_end() {
    let (_dir, path) = place();
    for mode in [0o600, 0o660, 0o666, 0o777] {
        let plan = ListenPlan { socket_mode: mode, ..plan(vec![LocalAddress::Unix(path.clone())]) };
        let bound = stake(&plan).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
        drop(bound);
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn what_somebody_else_has_put_there_stays() {
    let (_dir, path) = place();
    let bound = socket(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    drop(bound);
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
}

#[tokio::test]
async fn what_nobody_listens_on_is_replaced() {
    let (_dir, path) = place();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let mut bound = socket(&path).unwrap();
    let (client, accepted) = tokio::join!(UnixStream::connect(&path), bound.accept());
    client.unwrap();
    assert!(accepted.0.local_address().is_none());
}

#[tokio::test]
async fn what_is_in_the_way_is_named_and_stays() {
    let (dir, path) = place();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("file"), "precious").unwrap();
    symlink("file", at("link")).unwrap();
    let datagram = std::os::unix::net::UnixDatagram::bind(at("datagram")).unwrap();
    fs::create_dir(at("directory")).unwrap();
    for (name, expected) in [
        ("file", "is the name of a file that is no socket: move it away, or listen elsewhere"),
        ("link", "is the name of a file that is no socket"),
        ("datagram", "is in use by another program"),
        ("directory", "is a directory: name the socket in it, such as unix:"),
        ("missing/socket", "cannot be made: there is no directory "),
        ("file/socket", "cannot be made: there is no directory "),
    ] {
        let error = socket(&at(name)).unwrap_err();
        let full = format!("unix:{} {expected}", at(name).display());
        assert!(error.starts_with(&full), "{error}");
    }
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "precious");
    drop(datagram);
    let plan = plan(vec![LocalAddress::Unix(path.clone())]);
    let plan = ListenPlan { socket_group: Some("no such group".to_owned()), ..plan };
    let error = stake(&plan).unwrap_err();
    assert!(error.contains("there is no group \"no such group\": make it (groupadd)"), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_directory_that_cannot_be_written_to_is_named() {
    for kind in [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem] {
        let text = unix::explain(&io::Error::from(kind), Path::new("/run/x/.s.PGSQL.5432"));
        assert_eq!(text, "cannot be made: this user may not write to /run/x: let it, or listen elsewhere");
    }
}

#[tokio::test]
async fn systemd_has_to_hand_over_what_is_listened_on() {
    let plan = ListenPlan { at: vec![ListenAt::Systemd("analytics".to_owned())], ..plan(Vec::new()) };
    let error = stake(&plan).unwrap_err();
    let expected = "systemd:analytics was not handed over: start the daemon by its socket unit (FileDescriptorName=analytics)";
    assert_eq!(error, expected);
}

#[tokio::test]
async fn what_is_ours_already_is_the_same_claim() {
    let (_dir, path) = place();
    let claims = Claims::default();
    let free = Bound::tcp("127.0.0.1:0".parse().unwrap()).unwrap().addresses().next().unwrap().clone();
    let plan = plan(vec![free, LocalAddress::Unix(path.clone())]);
    let first = claims.stake(&plan).unwrap();
    let again = claims.stake(&plan).unwrap();
    assert!(first.iter().zip(&again).all(|(one, other)| Arc::ptr_eq(one, other)));
    // Whoever accepted before has let go, and a client that came in between is still there.
    let before = Bound::new(first).unwrap();
    let client = UnixStream::connect(&path).await.unwrap();
    drop(before);
    let mut bound = Bound::new(again).unwrap();
    assert!(bound.accept().await.0.local_address().is_none());
    drop((bound, client));
    assert!(!path.exists(), "nobody holds it any more");
    let other = ListenPlan { socket_mode: 0o600, ..plan };
    let claimed = claims.stake(&other).unwrap();
    claimed[1].set_access(&ListenPlan { socket_mode: 0o666, ..other }).unwrap();
    assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777, 0o666);
}

#[tokio::test]
async fn whom_a_socket_is_for_can_be_changed_and_changed_back() {
    let (_dir, path) = place();
    let claims = Claims::default();
    let plan = plan(vec![LocalAddress::Unix(path.clone())]);
    let group = || fs::symlink_metadata(&path).unwrap().gid();
    let claimed = claims.stake(&plan).unwrap();
    let own = group();
    // Only root may give a file to whom it likes.
    if nix::unistd::geteuid().is_root() {
        let given = ListenPlan { socket_group: Some("4711".to_owned()), ..plan.clone() };
        claimed[0].set_access(&given).unwrap();
        assert_eq!(group(), 4711);
    }
    claimed[0].set_access(&plan).unwrap();
    assert_eq!(group(), own);
    let unknown = ListenPlan { socket_group: Some("no such group".to_owned()), ..plan };
    let error = claims.stake(&unknown).unwrap_err().to_string();
    assert!(error.contains("there is no group \"no such group\""), "{error}");
}

#[tokio::test]
async fn what_is_in_the_way_and_ours_is_said_to_be() {
    let claims = Claims::default();
    let any = plan(vec![LocalAddress::Tcp("127.0.0.1:0".parse().unwrap())]);
    let port = claims.stake(&any).unwrap()[0].address().tcp().unwrap().port();
    let [narrow, wide] = ["127.0.0.1", "0.0.0.0"]
        .map(|ip| plan(vec![LocalAddress::Tcp(format!("{ip}:{port}").parse().unwrap())]));
    for (ours, other) in [(&narrow, &wide), (&wide, &narrow)] {
        let held = claims.stake(ours).unwrap();
        let error = claims.stake(other).unwrap_err().to_string();
        let (ours, other) = (held[0].address(), &other.at[0]);
        let expected = format!(
            "{other} is still held as {ours} until this is applied: restart the daemon, or take that out in a reload of \
             its own first"
        );
        assert_eq!(error, expected);
    }
    let _another = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let error = claims.stake(&narrow).unwrap_err().to_string();
    assert!(error.ends_with("is in use by another program: stop it, or listen elsewhere"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stakes_while_another_lets_go_has_it_or_hears_why_not() {
    let (_dir, path) = place();
    let claims = Arc::new(Claims::default());
    let plan = plan(vec![LocalAddress::Unix(path)]);
    for _ in 0..200 {
        let Ok(held) = claims.stake(&plan) else { continue };
        let bound = Bound::new(held).unwrap();
        let going = std::thread::spawn(move || drop(bound));
        if let Ok(staked) = claims.stake(&plan) {
            assert_eq!(staked.len(), 1, "it would listen nowhere");
        }
        going.join().unwrap();
    }
}
