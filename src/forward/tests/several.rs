//! A database behind several bastions.

use super::*;

#[tokio::test]
async fn a_client_that_one_bastion_cannot_connect_goes_through_the_next() {
    let case = Case::behind(&["prod", "spare"], true, usual());
    case.second.set_up(true);
    case.dial.refuse(Failure::new(Cause::ChannelProhibited, "no"));
    let mut far = case.second.answer();
    let mut client = case.connect().await;
    begin(&mut client, &mut far).await;
    let seat = case.state.borrow().clients.list()[0].seat();
    assert_eq!(seat.unwrap().0.as_str(), "spare");
    // The next one does not even try.
    let mut far = case.second.answer();
    begin(&mut case.connect().await, &mut far).await;
    let failed = |bastion: &str| {
        let labels = format!("bastion=\"{bastion}\",database=\"analytics\",reason=\"prohibited\"");
        case.counted(&format!("channel_failures_total{{{labels}}}"))
    };
    assert_eq!((failed("prod"), failed("spare")), ("1".to_owned(), "0".to_owned()));
    let state = case.state.borrow().clone();
    assert_eq!(state.failing.into_iter().next().unwrap().1, Cause::ChannelProhibited);
}

#[tokio::test]
async fn a_database_that_no_bastion_reaches_is_not_hammered() {
    let forward = ForwardPlan { hold_timeout: Duration::from_millis(400), ..usual() };
    let case = Case::behind(&["prod", "spare"], true, forward);
    case.second.set_up(true);
    for dial in [&case.dial, &case.second] {
        (0..100).for_each(|_| dial.refuse(Failure::new(Cause::ChannelConnectFailed, "refused")));
    }
    let mut client = case.connect().await;
    client.write_all(STARTUP).await.unwrap();
    fatal_text(&rest(&mut client).await.unwrap());
    for bastion in ["prod", "spare"] {
        let labels = format!("bastion=\"{bastion}\",database=\"analytics\",reason=\"connect_failed\"");
        let tried = case.counted(&format!("channel_failures_total{{{labels}}}"));
        assert!(tried == "1" || tried == "2", "{bastion}: {tried} times, at once and after 0.25 s");
    }
}

#[tokio::test]
async fn a_bastion_without_a_seat_is_passed_by_at_once() {
    let forward = ForwardPlan { hold_timeout: Duration::ZERO, hold_max: 0, ..usual() };
    let case = Case::behind(&["prod", "spare"], true, forward);
    case.dial.give_seats(false);
    case.second.set_up(true);
    let mut far = case.second.answer();
    let mut client = case.connect().await;
    begin(&mut client, &mut far).await;
}

#[tokio::test]
async fn a_held_client_takes_the_first_bastion_that_comes_and_hears_of_all() {
    let forward = ForwardPlan { hold_timeout: Duration::from_secs(1), ..usual() };
    let case = Case::behind(&["prod", "spare"], false, forward);
    assert!(case.state.borrow().uptime.since().is_none());
    let mut far = case.second.answer();
    let mut first = case.connect().await;
    case.held(1).await;
    case.second.set_up(true);
    begin(&mut first, &mut far).await;
    eventually(|| case.state.borrow().uptime.since().is_some()).await;
    case.second.set_up(false);
    case.dial.publish(TunnelState { refusing: true, ..TunnelState::default() });
    let mut second = case.connect().await;
    second.write_all(STARTUP).await.unwrap();
    let (_, text) = fatal_text(&rest(&mut second).await.unwrap());
    assert!(
        text.contains("bastion \"prod\" is down") && text.contains("bastion \"spare\" is down"),
        "{text}"
    );
    case.outcome("hold_timeout").await;
}
