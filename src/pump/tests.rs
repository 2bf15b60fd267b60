use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex};

use proptest::prelude::*;

use super::*;
use crate::dial::fake::{FakeDial, FarEnd, Sent, link};
use crate::ids::Name;
use crate::local::Peer;
use crate::metrics::Metrics;
use crate::snapshot::tests::troubled;
use crate::state::{Activity, ClientState, Moment};

impl Local for DuplexStream {
    type Read<'a> = ReadHalf<&'a mut DuplexStream>;
    type Write<'a> = WriteHalf<&'a mut DuplexStream>;

    fn halves(&mut self) -> (Self::Read<'_>, Self::Write<'_>) {
        tokio::io::split(self)
    }
}

impl LocalRead for ReadHalf<&mut DuplexStream> {
    fn poll_readable(&self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

const STARTUP: &[u8] = b"\0\0\0\x11\0\x03\0\0user\0me\0\0";
const READY: &[u8] = b"Z\0\0\0\x05I";

struct Carried {
    client: DuplexStream,
    far: FarEnd,
    dial: FakeDial,
    stop: CancellationToken,
    ending: tokio::task::JoinHandle<Ending>,
    state: Arc<ClientState>,
    metrics: Metrics,
}

impl Carried {
    /// The value of a series of the database.
    fn figure(&self, name: &str) -> f64 {
        let text = self.metrics.exposition(&troubled()).unwrap();
        let series = format!("tunnelkeeper_{name}{{database=\"d\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
    }

    /// The client begins a session with or without encryption.
    async fn begin(&mut self, request: &[u8], answer: &'static [u8]) {
        self.client.write_all(request).await.unwrap();
        self.far.hear(request.len()).await;
        self.say(answer).await;
    }

    /// The database says something, and the client hears it.
    async fn say(&mut self, words: &'static [u8]) {
        self.far.say(words);
        self.client.read_exact(&mut vec![0; words.len()]).await.unwrap();
    }

    /// Both sides say all they have to say, and the link is left open.
    async fn answer(&mut self) {
        assert_eq!(self.far.hear(8).await, b"question");
        assert_eq!(self.far.sent.recv().await, Some(Sent::End));
        self.far.say(b"answer");
        self.far.arrive(Arrival::End);
        let mut answer = Vec::new();
        self.client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
    }
}

/// A client carried over a link whose far end the test plays.
fn carry(first: FirstBytes, idle: Option<Duration>) -> Carried {
    let (client, mut local) = duplex(1 << 10);
    let (mut inbound, mut outbound, far) = link();
    let dial = FakeDial::new(true);
    let seat = dial.seat_now();
    let stop = CancellationToken::new();
    let (_, limits) = watch::channel(Limits { idle, stall: Duration::from_secs(60) });
    let bounds = Bounds { limits, stop: stop.clone() };
    let now = Moment { instant: std::time::Instant::now(), wall: SystemTime::now() };
    let state = Arc::new(ClientState::new(1, Peer::Tcp(SocketAddr::from(([127, 0, 0, 1], 1))), now));
    let name = |text| Name::parse(text).unwrap();
    let metrics = Metrics::new().unwrap();
    let handles = metrics.database(&name("d"), &[name("b")]);
    let ending = tokio::spawn({
        let state = Arc::clone(&state);
        async move {
            let meter = Meter::new(&state, &handles, &first);
            pump(&mut local, &seat, &mut inbound, &mut outbound, first, &meter, bounds).await
        }
    });
    Carried { client, far, dial, stop, ending, state, metrics }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_is_lost_before_anything_was_sent_loses_nothing() {
    let first = FirstBytes { bytes: b"question".to_vec(), ended: true };
    let carried = carry(first.clone(), None);
    carried.far.arrive(lost());
    let Ending::Again(again, _) = carried.ending.await.unwrap() else { panic!("it cannot begin again") };
    assert_eq!(again, first);
}

#[tokio::test(start_paused = true)]
async fn a_link_of_which_both_directions_have_ended_is_done() {
    let mut carried = carry(FirstBytes { bytes: b"question".to_vec(), ended: true }, None);
    carried.answer().await;
    assert_eq!(carried.ending.await.unwrap(), Ending::Done, "it waited for the bastion to close the link");
}

fn lost() -> Arrival {
    Arrival::Lost(Failure::new(Cause::SessionReset, "gone"))
}

#[tokio::test(start_paused = true)]
async fn half_close_passes_both_ways() {
    let mut carried = carry(FirstBytes::default(), None);
    carried.client.write_all(b"question").await.unwrap();
    carried.client.shutdown().await.unwrap();
    carried.answer().await;
    assert_eq!(carried.ending.await.unwrap(), Ending::Done);
    let counted = (&carried.state.to_database, &carried.state.from_database);
    assert_eq!((counted.0.load(Ordering::Relaxed), counted.1.load(Ordering::Relaxed)), (8, 6));
}

#[tokio::test(start_paused = true)]
async fn the_database_may_end_first_and_still_listen() {
    let mut carried = carry(FirstBytes::default(), None);
    carried.far.say(b"bye");
    carried.far.arrive(Arrival::End);
    let mut said = Vec::new();
    carried.client.read_to_end(&mut said).await.unwrap();
    carried.client.write_all(b"one more thing").await.unwrap();
    assert_eq!(carried.far.hear(14).await, b"one more thing");
    drop(carried.client);
    assert_eq!(carried.far.sent.recv().await, Some(Sent::End));
    assert_eq!(carried.ending.await.unwrap(), Ending::Done);
}

#[tokio::test(start_paused = true)]
async fn what_arrived_is_written_before_the_link_closes() {
    let mut carried = carry(FirstBytes::default(), None);
    let big = vec![7u8; 100 << 10];
    carried.far.arrive(Arrival::Data(Bytes::from(big.clone())));
    carried.far.arrive(Arrival::Closed);
    let mut read = Vec::new();
    carried.client.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, big);
    assert_eq!(carried.ending.await.unwrap(), Ending::Done);
}

#[tokio::test(start_paused = true)]
async fn lost_before_an_answer_the_client_begins_again() {
    let mut carried = carry(FirstBytes { bytes: b"SSL?".to_vec(), ended: false }, None);
    assert_eq!(carried.far.hear(4).await, b"SSL?");
    carried.client.write_all(b"more").await.unwrap();
    assert_eq!(carried.far.hear(4).await, b"more");
    carried.far.arrive(lost());
    let Ending::Again(first, failure) = carried.ending.await.unwrap() else { panic!("not again") };
    assert_eq!((first.bytes.as_slice(), first.ended), (&b"SSL?more"[..], false));
    assert_eq!(failure.cause, Cause::SessionReset);
}

#[tokio::test(start_paused = true)]
async fn lost_after_an_answer_or_too_many_bytes_it_is_cut() {
    let carried = carry(FirstBytes::default(), None);
    carried.far.say(b"N");
    carried.far.arrive(lost());
    assert!(matches!(carried.ending.await.unwrap(), Ending::Cut { .. }));

    let mut carried = carry(FirstBytes::default(), None);
    let writer = tokio::spawn(async move {
        carried.client.write_all(&vec![1; MAX_FIRST_BYTES + 1]).await.unwrap();
        carried.client
    });
    assert_eq!(carried.far.hear(MAX_FIRST_BYTES + 1).await.len(), MAX_FIRST_BYTES + 1);
    carried.far.arrive(lost());
    assert!(matches!(carried.ending.await.unwrap(), Ending::Cut { .. }));
    drop(writer);
}

#[tokio::test(start_paused = true)]
async fn a_cut_may_be_explained_only_between_messages() {
    for (from_database, expected) in [(READY, true), (&READY[..4], false)] {
        let mut carried = carry(FirstBytes::default(), None);
        carried.client.write_all(STARTUP).await.unwrap();
        carried.far.hear(STARTUP.len()).await;
        carried.far.say(from_database);
        carried.far.arrive(lost());
        let Ending::Cut { at_boundary, .. } = carried.ending.await.unwrap() else { panic!("not cut") };
        assert_eq!(at_boundary, expected, "{from_database:?}");
        let mut read = Vec::new();
        carried.client.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, from_database, "what had arrived was not passed on");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_and_is_lost_is_not_told() {
    let mut carried = carry(FirstBytes::default(), None);
    carried.client.write_all(STARTUP).await.unwrap();
    carried.far.hear(STARTUP.len()).await;
    for _ in 0..1000 {
        carried.far.say(READY);
    }
    carried.far.arrive(lost());
    assert!(matches!(carried.ending.await.unwrap(), Ending::Cut { at_boundary: false, .. }));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_is_noticed() {
    let mut carried = carry(FirstBytes::default(), None);
    carried.far.arrive(Arrival::Data(Bytes::from(vec![1; 10_000])));
    carried.client.read_u8().await.unwrap();
    drop(carried.client);
    assert_eq!(carried.ending.await.unwrap(), Ending::ClientLeft);
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_ended_after_its_time() {
    let started = Instant::now();
    let mut carried = carry(FirstBytes::default(), Some(Duration::from_secs(100)));
    tokio::time::sleep(Duration::from_secs(90)).await;
    carried.client.write_all(b"x").await.unwrap();
    let Ending::Cut { failure, .. } = carried.ending.await.unwrap() else { panic!("not cut") };
    assert_eq!((failure.cause, started.elapsed().as_secs()), (Cause::ClientIdle, 190));
}

#[tokio::test(start_paused = true)]
async fn only_whoever_blocks_others_is_cut_for_not_reading() {
    let carried = carry(FirstBytes::default(), None);
    carried.far.arrive(Arrival::Data(Bytes::from(vec![1; 100_000])));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!carried.ending.is_finished(), "it was cut though it blocked nobody");
    let blocked = Instant::now();
    carried.dial.block(true);
    let Ending::Cut { failure, .. } = carried.ending.await.unwrap() else { panic!("not cut") };
    assert_eq!(failure.cause, Cause::ClientStalled);
    assert!((60..=62).contains(&blocked.elapsed().as_secs()), "{:?}", blocked.elapsed());
}

/// Reads a little at a time until nothing comes any more; returns how much came.
async fn read_slowly(client: &mut (impl AsyncRead + Unpin)) -> usize {
    let mut total = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(40)).await;
        match client.read(&mut [0; 4 << 10]).await.unwrap_or(0) {
            0 => return total,
            read => total += read,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_that_blocks_nobody_is_left_alone() {
    let mut carried = carry(FirstBytes::default(), None);
    carried.far.arrive(Arrival::Data(Bytes::from(vec![1; 100 << 10])));
    carried.far.arrive(Arrival::Closed);
    assert_eq!(read_slowly(&mut carried.client).await, 100 << 10);
    assert_eq!(carried.ending.await.unwrap(), Ending::Done);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_for_whom_others_wait_too_long_is_a_stalled_one() {
    let mut carried = carry(FirstBytes::default(), None);
    carried.dial.block(true);
    carried.far.arrive(Arrival::Data(Bytes::from(vec![1; 100 << 10])));
    assert!(read_slowly(&mut carried.client).await < 100 << 10);
    let Ending::Cut { failure, .. } = carried.ending.await.unwrap() else { panic!("not cut") };
    assert_eq!(failure.cause, Cause::ClientStalled);
}

#[tokio::test(start_paused = true)]
async fn told_to_stop_it_stops() {
    let carried = carry(FirstBytes::default(), None);
    carried.stop.cancel();
    let Ending::Cut { failure, .. } = carried.ending.await.unwrap() else { panic!("not cut") };
    assert_eq!(failure.cause, Cause::ClientDrained);
}

#[tokio::test(start_paused = true)]
async fn a_link_that_nobody_wants_any_more_is_left_in_good_order() {
    let (inbound, outbound, mut far) = link();
    let backlog = Arc::clone(&inbound.backlog);
    let abandoned = tokio::spawn(abandon(inbound, outbound));
    assert_eq!(far.sent.recv().await, Some(Sent::End));
    far.say(b"leftovers");
    far.arrive(Arrival::Closed);
    abandoned.await.unwrap();
    assert_eq!(backlog.load(Ordering::SeqCst), 0);

    for over in [Arrival::Closed, lost()] {
        let (mut inbound, outbound, far) = link();
        far.arrive(over);
        poll_fn(|context| inbound.poll_arrival(context)).await;
        let started = Instant::now();
        abandon(inbound, outbound).await;
        assert_eq!(started.elapsed(), Duration::ZERO, "a link that is over was waited for");
    }

    let (inbound, outbound, far) = link();
    let started = Instant::now();
    abandon(inbound, outbound).await;
    assert_eq!(started.elapsed(), CLOSE_PATIENCE, "a silent bastion was waited for");
    drop(far);
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_query_begins_when_its_last_byte_is_taken() {
    let mut carried = carry(FirstBytes::default(), None);
    carried.begin(STARTUP, READY).await;
    // More than the link takes at a time, of somebody who takes nothing for a while.
    let query = [b"Q\0\x03\0\x04".to_vec(), vec![b' '; 3 << 16]].concat();
    let (mut read, mut write) = tokio::io::split(carried.client);
    let asking = query.clone();
    let asked = tokio::spawn(async move {
        write.write_all(&asking).await.unwrap();
        write
    });
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(carried.state.doing().activity, Activity::InQuery);
    assert_eq!(carried.far.hear(query.len()).await, query);
    tokio::time::sleep(Duration::from_secs(2)).await;
    carried.far.say(READY);
    read.read_exact(&mut [0; READY.len()]).await.unwrap();
    carried.client = read.unsplit(asked.await.unwrap());
    assert_eq!(carried.state.doing().activity, Activity::Idle);
    let seconds = carried.figure("query_duration_seconds_sum");
    assert!((2.0..2.1).contains(&seconds), "{seconds}");
    assert_eq!(carried.figure("query_duration_seconds_count"), 1.0);
    assert_eq!(carried.figure("turnaround_seconds_count"), 0.0);
    assert_eq!(carried.state.startup.get().unwrap().user, "me");
}

#[tokio::test(start_paused = true)]
async fn the_turnaround_of_an_encrypted_client_ends_with_the_first_byte() {
    let mut carried = carry(FirstBytes::default(), None);
    carried.begin(&crate::pgwire::SSL_REQUEST, b"S").await;
    carried.client.write_all(b"hello").await.unwrap();
    carried.far.hear(5).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    carried.say(b"hello").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    carried.say(b"and more").await;
    assert_eq!(carried.figure("turnaround_seconds_count"), 1.0);
    let seconds = carried.figure("turnaround_seconds_sum");
    assert!((3.0..3.1).contains(&seconds), "{seconds}");
    assert_eq!(carried.figure("query_duration_seconds_count"), 0.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_said_arrives_as_it_was_said(
        plain: bool,
        blocks in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 1..300)), 0..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut carried = carry(FirstBytes::default(), None);
            if plain {
                carried.begin(STARTUP, READY).await;
            }
            for (from_client, block) in &blocks {
                if *from_client {
                    carried.client.write_all(block).await.unwrap();
                    assert_eq!(&carried.far.hear(block.len()).await, block);
                } else {
                    carried.far.arrive(Arrival::Data(Bytes::from(block.clone())));
                    let mut heard = vec![0; block.len()];
                    carried.client.read_exact(&mut heard).await.unwrap();
                    assert_eq!(&heard, block);
                }
            }
            carried.client.shutdown().await.unwrap();
            assert_eq!(carried.far.sent.recv().await, Some(Sent::End));
            carried.far.arrive(Arrival::Closed);
            assert_eq!(carried.ending.await.unwrap(), Ending::Done);
        });
    }
}
