use std::time::{Duration, Instant, UNIX_EPOCH};

use super::*;
use crate::failure::{Cause, Failure};
use crate::history::{Sight, Unit};
use crate::ids::Name;
use crate::snapshot::tests::troubled;
use crate::snapshot::{Cut, NextKey};
use crate::state::{Incident, Moment};

const MARKUP: &str = "<img src=x onerror=\"alert('&')\"></title><script>";

fn count(page: &str, text: &str) -> usize {
    page.matches(text).count()
}

#[test]
fn what_lasts_is_explained() {
    let page = render(&troubled(), &History::default());
    for (text, times) in [
        ("<h2>What is wrong</h2>", 1),
        ("<code class=\"cause\">auth rejected: </code>the", 2),
        ("<code class=\"cause\">channel prohibited: </code>the", 2),
        ("<code class=\"cause\">db_login rejected: </code>the", 2),
        ("for 10s</span></h3>", 4),
        ("heal prohibited", 2),
        ("tunnelkeeper keygen gone", 1),
        ("databases behind it: lost", 1),
        ("1 of 2 tunnels down", 1),
        ("2 of 2 databases down", 1),
        ("<title>3 down · tunnelkeeper</title>", 1),
        ("in a query for 7s", 2),
        ("me in d", 2),
        ("&lt;b&gt;", 2),
        ("draining: the daemon was told to stop", 1),
    ] {
        assert_eq!(count(&page, text), times, "{text} in {page}");
    }
}

#[test]
fn what_is_wrong_comes_before_what_is_well_and_is_absent_when_all_is() {
    let mut snapshot = troubled();
    let page = render(&snapshot, &History::default());
    let place = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} in {page}"));
    let order =
        ["role=\"status\"", "What is wrong", "<h2>Bastions", "<h2>Databases", "<h2>Clients", "are over"];
    assert!(order.map(place).is_sorted());
    snapshot.bastions.retain(|bastion| bastion.up);
    snapshot.databases.retain_mut(|database| {
        (database.last_failure, database.probe.last_failure) = (None, None);
        database.probe.verdict = "up".to_owned();
        database.up
    });
    let page = render(&snapshot, &History::default());
    assert!(
        !page.contains("What is wrong") && page.contains("1 tunnel up") && page.contains("1 database up"),
        "{page}"
    );
    assert!(page.contains("<title>tunnelkeeper</title>"));
}

#[test]
fn what_only_has_to_be_done_is_said_of_a_tunnel_that_is_up() {
    let mut snapshot = troubled();
    let at = snapshot.at;
    let shown = |snapshot: &Snapshot, text: &str| count(&render(snapshot, &History::default()), text);
    let prod = snapshot.bastions.iter_mut().find(|bastion| bastion.up).unwrap();
    prod.next_key = Some(NextKey { public_key: "ssh-ed25519 NEXT".to_owned(), since: at, last_asked: None });
    assert_eq!(shown(&snapshot, "a next key waits for the bastion to accept it"), 1);
    assert_eq!(shown(&snapshot, "ssh-ed25519 NEXT"), 1);
    let prod = snapshot.bastions.iter_mut().find(|bastion| bastion.up).unwrap();
    prod.session_cut = Some(Cut {
        after: "idle".to_owned(),
        seconds: 61,
        at_most: false,
        losses: 3,
        detail: "cut thrice".to_owned(),
        hint: "write `keepalive_interval`".to_owned(),
    });
    assert_eq!(shown(&snapshot, "its sessions are cut again and again"), 1);
    assert_eq!(shown(&snapshot, "<code>keepalive_interval</code>"), 1);
    assert_eq!(shown(&snapshot, "ssh-ed25519 NEXT"), 1);
}

/// Every text that may come from elsewhere.
#[test]
fn no_text_becomes_markup() {
    let mut snapshot = troubled();
    let hostile = || MARKUP.to_owned();
    snapshot.daemon.not_ready_because = vec![hostile()];
    snapshot.daemon.configuration.refused = Some(snapshot.at);
    snapshot.daemon.configuration.problems = vec![hostile()];
    for bastion in &mut snapshot.bastions {
        (bastion.host, bastion.user, bastion.jump) = (hostile(), hostile(), Some(hostile()));
        bastion.public_key = Some(hostile());
        bastion.next_key =
            Some(NextKey { public_key: hostile(), since: snapshot.at, last_asked: Some(snapshot.at) });
        bastion.session_cut = Some(Cut {
            after: hostile(),
            seconds: 61,
            at_most: false,
            losses: 3,
            detail: hostile(),
            hint: hostile(),
        });
        let failure = bastion.last_failure.as_mut().unwrap();
        (failure.detail, failure.hint) = (hostile(), hostile());
    }
    for database in &mut snapshot.databases {
        (database.host, database.listen) = (hostile(), vec![hostile()]);
        for client in &mut database.clients {
            (client.peer, client.activity) = (hostile(), hostile());
            (client.user, client.database) = (Some(hostile()), Some("d".to_owned()));
            client.application_name = Some(hostile());
        }
    }
    let now = Moment { instant: Instant::now(), wall: UNIX_EPOCH };
    let incident = Incident { failure: Failure::new(Cause::BannerNotSsh, MARKUP), since: now, last: now };
    let sight = Sight { state: Some((false, now)), failure: Some(&incident), ..Sight::default() };
    let mut history = History::default();
    history.tell(&Unit::Bastion(Name::parse("prod").unwrap()), &sight, now.instant);
    history.reloaded(UNIX_EPOCH, &[hostile()]);
    let page = render(&snapshot, &history);
    let escaped = "&lt;img src=x onerror=&quot;alert('&amp;')&quot;&gt;&lt;/title&gt;&lt;script&gt;";
    assert!(count(&page, escaped) >= 30, "only {} in {page}", count(&page, escaped));
    for (markup, times) in [("<img", 0), ("<script", 1), ("</title>", 1), ("onerror=\"", 0), ("style=", 0)] {
        // A chart has a title of its own.
        let charts = if markup == "</title>" { count(&page, "<svg") } else { 0 };
        assert_eq!(count(&page, markup), times + charts, "{markup} in {page}");
    }
}

#[test]
fn the_last_hour_is_drawn_and_said() {
    let (begin, mut history) = (Instant::now(), History::default());
    let (up, down) =
        (Unit::Bastion(Name::parse("prod").unwrap()), Unit::Database(Name::parse("lost").unwrap()));
    for (seconds, millis) in [(0, 10), (30, 40), (90, 20)] {
        let now = begin + Duration::from_secs(seconds);
        let sight =
            Sight { reachable: Some(true), took: Some(Duration::from_millis(millis)), ..Sight::default() };
        history.tell(&up, &sight, now);
        history.tell(&down, &Sight { reachable: Some(seconds > 0), ..Sight::default() }, now);
    }
    let page = render(&troubled(), &history);
    for text in [
        // Ten is a quarter of forty, and nothing is known between.
        "<path class=\"line\" d=\"M116 152H117V10H118M119 105H120\">",
        "<path class=\"area\" d=\"M116 200V152H117V10H118V200ZM119 200V105H120V200Z\">",
        "<path class=\"up\" d=\"M116 270h2v20h-2zM119 270h1v20h-1z\">",
        "<path class=\"down\" d=\"M116 225h1v75h-1z\">",
        "<title>prod, last hour: up 100 %, round trip at most 40.0 ms</title>",
        "<title>lost, last hour: up 66.6 %</title>",
    ] {
        assert_eq!(count(&page, text), 1, "{text} in {page}");
    }
    assert_eq!(count(&page, "<svg"), 2, "nothing is drawn of those of which nothing is known");
}

#[test]
fn an_hour_of_ups_and_downs_is_told_with_at_most_so_much_text() {
    let (begin, mut history) = (Instant::now(), History::default());
    let prod = Unit::Bastion(Name::parse("prod").unwrap());
    for second in (0..7200).step_by(5) {
        let wall = UNIX_EPOCH + Duration::from_secs(second);
        let now = Moment { instant: begin + Duration::from_secs(second), wall };
        let (up, took) = (second % 60 < 30, Some(Duration::from_micros(1_000_000 + second * 777 % 99_991)));
        history.tell(
            &prod,
            &Sight { reachable: Some(up), took, state: Some((up, now)), failure: None },
            now.instant,
        );
    }
    let page = render(&troubled(), &history);
    assert!(page.len() < 40_000, "{} bytes", page.len());
    assert_eq!(count(&page, "id=\"change."), 20);
}
