//! Clients that are not to be held.

use super::*;

#[tokio::test]
async fn nobody_is_refused_before_the_pool_has_said_no() {
    let case = Case::new(true, ForwardPlan { hold_timeout: Duration::ZERO, ..usual() });
    case.dial.give_seats(false);
    case.dial.be_busy(true);
    let mut client = case.connect().await;
    case.held(1).await;
    let mut far = case.dial.answer();
    case.dial.give_seats(true);
    begin(&mut client, &mut far).await;

    case.dial.give_seats(false);
    let mut refused = case.connect().await;
    refused.write_all(STARTUP).await.unwrap();
    case.held(1).await;
    case.dial.be_busy(false);
    let answer = rest(&mut refused).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("wait for clients that do not read"), "{answer:?}");
}
