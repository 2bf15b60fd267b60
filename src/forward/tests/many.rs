//! Many clients, one after another.

use super::*;

/// Each leaves at once what it had: no task waits for a link that is over.
#[tokio::test]
async fn ten_thousand_clients_leave_no_task_behind() {
    let case = Case::new(true, usual());
    let tasks = || runtime::Handle::current().metrics().num_alive_tasks();
    eventually(|| tasks() == 2).await;
    for client_first in [true, false] {
        for _ in 0..5_000 {
            let mut far = case.dial.answer();
            let mut client = case.connect().await;
            client.write_all(b"q").await.unwrap();
            assert_eq!(far.hear(1).await, b"q");
            if client_first {
                drop(client);
                assert_eq!(far.sent.recv().await, Some(Sent::End));
                far.arrive(Arrival::Closed);
            } else {
                far.arrive(Arrival::End);
                far.arrive(Arrival::Closed);
                assert_eq!(rest(&mut client).await.unwrap(), b"");
            }
            assert!(tasks() < 100, "clients that have gone leave tasks behind");
        }
        eventually(|| tasks() == 2 && case.dial.seats_taken() == 0).await;
    }
}
