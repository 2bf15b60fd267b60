//! The status page as people see it, in a real Chromium: it keeps itself as things are, reads well wherever it is read, and
//! nothing in it does anything that it should not.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};

use tokio_postgres::Client;

use crate::support::client::connect_as;
use crate::support::postgres::DATABASE;
use crate::support::{Bastion, Browser, Daemon, Postgres, eventually, free_port, runtime, tunnel};

const HOSTILE: &str = "<script>top.taken=1</script><img src=/x onerror=top.taken=1>";

/// A bastion that greets with this, and is no SSH server.
fn greeter(greeting: &'static str) -> u16 {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut socket in server.incoming().map_while(Result::ok) {
            let _ = socket.write_all(greeting.as_bytes());
            let _ = socket.shutdown(Shutdown::Write);
            let _ = socket.read_to_end(&mut Vec::new());
        }
    });
    port
}

/// One bastion that is well and its database with a client; one that is away; one that is none; and a database that is not
/// there. What comes from others is hostile where it can be.
fn everything() -> (Bastion, Daemon, Client, tokio::runtime::Runtime) {
    let (bastion, postgres) = (Bastion::start(), Postgres::shared());
    let missing = postgres.section("missing", "prod").replace(DATABASE, HOSTILE);
    let daemon = Daemon::start(&format!(
        "{}{}[bastions.gone]\nhost = \"127.0.0.1\"\nport = 1\nuser = \"keeper\"\n{}{}{missing}",
        bastion.section("prod", bastion.port),
        bastion.section("strange", greeter(HOSTILE)),
        postgres.section("analytics", "prod"),
        postgres.section("lost", "gone"),
    ));
    daemon.wait_up("prod");
    let runtime = runtime();
    let client = runtime.block_on(connect_as(daemon.address("analytics"), HOSTILE)).unwrap();
    eventually("the probes have found out", || {
        let verdict = |name| daemon.database(name)["probe"]["verdict"].as_str().unwrap().to_owned();
        let known =
            verdict("analytics") == "up" && daemon.database("missing")["probe"]["last_failure"].is_object();
        (known && daemon.bastion("strange")["last_failure"].is_object()).then_some(())
    });
    (bastion, daemon, client, runtime)
}

/// What is well at first and wrong later is told with the words of the status.
const TELLS_IT_IS_DOWN: &str = "
    const [card] = document.getElementsByClassName('trouble');
    return !!card && card.innerText.includes('prod: the tunnel is down')
        && document.getElementById('headline').innerText.includes('1 of 1 tunnel down')
        && document.title.startsWith('2 down')";
const TELLS_IT_IS_UP: &str = "
    return document.getElementById('headline').innerText.includes('1 tunnel up')
        && !document.querySelector('.trouble') && document.title === 'tunnelkeeper'";

#[test]
fn an_outage_comes_and_goes_before_the_readers_eyes() {
    let mut bastion = Bastion::start();
    let config = format!(
        "[http]\nlisten = \"127.0.0.1:{}\"\n[daemon]\nstate_dir = \"state\"\n{}{}",
        free_port(),
        bastion.section("prod", bastion.port),
        Postgres::shared().section("analytics", "prod"),
    );
    let daemon = Daemon::start(&config);
    let browser = Browser::start();
    browser.resize(900, 300);
    browser.open(&daemon.url());
    browser.wait(TELLS_IT_IS_UP);
    // The history looks every few seconds, and of what was before its first look it knows nothing.
    browser.wait("return document.getElementById('changes').innerText.includes('tunnel up')");
    // What a reload would lose: a mark, the focus, what is unfolded, the selection and the place on the page.
    browser.run(
        "window.mark = 'here';
         const summary = document.querySelector('#sessions summary');
         summary.click(); summary.focus(); summary.scrollIntoView();
         getSelection().selectAllChildren(document.querySelector('header .facts'));",
    );
    let place = "return [document.activeElement.innerText.slice(0, 8), document.querySelector('#sessions details').open,
                         getSelection().toString(), window.mark]";
    let kept = browser.run(place);
    assert_eq!((&kept[0], &kept[1], &kept[3]), (&"Sessions".into(), &true.into(), &"here".into()));
    assert!(kept[2].as_str().unwrap().starts_with("ready, running for"), "{kept}");
    assert!(browser.run("return scrollY").as_f64().unwrap() > 100.0);

    bastion.kill();
    browser.wait(TELLS_IT_IS_DOWN);
    // The same words as everywhere else, and what to do.
    eventually("the page says why", || {
        let failure = &daemon.bastion("prod")["last_failure"];
        let word = |key: &str| failure[key].as_str().unwrap().to_owned();
        let card = browser.run("return document.querySelector('.trouble').innerText");
        let card = card.as_str().unwrap().to_owned();
        let cause = format!("{} {}", word("phase"), word("reason"));
        (card.contains(&cause) && card.contains(&word("detail"))).then_some(())
    });
    bastion.start_again();
    browser.wait(TELLS_IT_IS_UP);
    browser.wait(
        "const changes = [...document.querySelectorAll('tr[id^=\"change.\"]')].map((row) => row.innerText);
         const place = (change) => changes.findIndex((text) => text.includes('prod') && text.includes(change));
         // The newest is the first.
         return 0 <= place('tunnel up') && place('tunnel up') < place('tunnel down')",
    );
    assert_eq!(browser.run(place), kept);
    assert_eq!(browser.console(), [""; 0]);

    // The daemon itself goes and comes back.
    drop(daemon);
    browser.wait(
        "const away = document.getElementById('away');
         const since = document.getElementById('at').innerText;
         return away.checkVisibility() && away.innerText.includes('no answer from the daemon since ' + since)
             && document.title.startsWith('no answer')",
    );
    assert_eq!(browser.run(place), kept);
    let _daemon = Daemon::start(&config);
    browser.wait("return !document.getElementById('away').checkVisibility()");
    browser.wait(TELLS_IT_IS_UP);
    assert_eq!(browser.run(place), kept);
    // It is another version, as the page has to think.
    browser.run("document.querySelector('link[rel=stylesheet]').setAttribute('href', '/page.css?v=old')");
    browser.wait("return window.mark === undefined");
    browser.wait(TELLS_IT_IS_UP);
}

#[test]
fn without_script_it_loads_itself_anew() {
    let (mut bastion, daemon) = tunnel("", &Postgres::shared().section("analytics", "prod"));
    let browser = Browser::without_script();
    browser.open(&daemon.url());
    let shows = |text: &str| eventually(text, || browser.source().contains(text).then_some(()));
    shows("1 tunnel up");
    bastion.kill();
    shows("1 of 1 tunnel down");
    bastion.start_again();
    shows("1 tunnel up");
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn what_others_say_is_shown_and_does_nothing() {
    let (_bastion, daemon, _client, _runtime) = everything();
    let browser = Browser::start();
    browser.open(&daemon.url());
    let shown = |rows: &str| {
        let script =
            format!("return [...document.querySelectorAll('{rows}')].map((e) => e.innerText).join(' ')");
        browser.run(&script).as_str().unwrap().to_owned()
    };
    // The greeting, the name of a database in PostgreSQL's answer, and that of an application, as far as it is kept.
    for rows in ["[id=\"trouble.strange\"]", "[id=\"trouble.missing.probe\"]", "[id^=\"client.analytics.\"]"]
    {
        let text = shown(rows);
        assert!(text.contains("<script>top.taken=1</script><img"), "{rows}: {text}");
    }
    // They are shown anew a few times.
    let at = "return document.getElementById('at').innerText";
    for _ in 0..3 {
        let before = browser.run(at);
        eventually("it is refreshed", || (browser.run(at) != before).then_some(()));
    }
    assert_eq!(
        browser.run("return [top.taken, document.images.length, document.scripts.length]").to_string(),
        "[null,0,1]"
    );
    assert_eq!(browser.console(), [""; 0]);
    // The browser itself refuses what a mistake of ours would let in.
    let refused = browser.run(
        "const refused = [];
         document.addEventListener('securitypolicyviolation', (event) => refused.push(event.effectiveDirective));
         try { document.body.innerHTML += '<p>' } catch {}
         const script = document.createElement('script');
         try { script.textContent = 'top.taken = 1'; document.body.append(script) } catch {}
         const style = document.createElement('style');
         style.textContent = 'p { color: red }';
         document.body.append(style);
         return new Promise((resolve) => setTimeout(() => resolve(refused), 0))",
    );
    assert_eq!(
        refused.to_string(),
        "[\"require-trusted-types-for\",\"require-trusted-types-for\",\"style-src-elem\"]"
    );
    assert!(browser.run("return top.taken").is_null());
}

/// Where a rule of reading well is broken, in words.
const COMPLAINTS: &str = r"
    const complaints = [];
    const wrong = (what, element) => complaints.push(what + ': ' + element.outerHTML.slice(0, 200));
    const root = document.scrollingElement;
    if (root.scrollWidth > innerWidth) complaints.push(`it is ${root.scrollWidth} wide on ${innerWidth}`);
    const ids = [...document.querySelectorAll('[id]')];
    for (const e of ids) if (document.querySelectorAll('#' + CSS.escape(e.id)).length > 1) wrong('its id is not its own', e);
    for (const e of document.querySelectorAll('a[href^=\'#\']'))
        if (!document.getElementById(e.hash.slice(1))) wrong('it leads nowhere', e);
    for (const e of document.querySelectorAll('img, svg'))
        if (e.getAttribute('role') !== 'img' || !e.querySelector(':scope > title')?.textContent) wrong('no words for it', e);
    for (const e of document.querySelectorAll('table'))
        if (!e.caption?.textContent.trim() || e.getAttribute('role') !== 'table') wrong('no caption or role', e);
    for (const e of document.querySelectorAll('th')) if (!e.scope) wrong('no scope', e);
    for (const e of document.querySelectorAll('section')) if (!e.querySelector('h2')) wrong('no heading', e);
    for (const e of document.querySelectorAll('[style], [onclick]')) wrong('it is not to be there', e);

    const channels = (color) => color.match(/[\d.]+/g).map(Number);
    const ground = (e) => {
        const color = e && channels(getComputedStyle(e).backgroundColor);
        return !e ? [255, 255, 255] : color.length < 4 || color[3] > 0 ? color : ground(e.parentElement);
    };
    const luminance = (color) => {
        const [r, g, b] = color.slice(0, 3).map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    let seen = 0;
    while (texts.nextNode()) {
        const e = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || !e.checkVisibility() || e.closest('svg')) continue;
        const pair = [channels(getComputedStyle(e).color), ground(e)].map(luminance).sort((a, b) => b - a);
        const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
        if (contrast < 4.5) wrong(`the contrast is ${contrast.toFixed(2)}`, e);
        seen += 1;
    }
    return { complaints, seen, charts: document.querySelectorAll('svg').length, tables: document.querySelectorAll('table').length,
             dark: luminance(ground(document.body)) < 0.2 }";

#[test]
fn it_reads_well_on_a_phone_at_a_desk_in_the_dark_and_aloud() {
    let (_bastion, daemon, _client, _runtime) = everything();
    eventually("there is something to draw", || {
        daemon.get("/").1.contains("<path class=\"line\"").then_some(())
    });
    let browser = Browser::start();
    for (width, scheme) in [(360, "light"), (360, "dark"), (800, "light"), (1280, "dark"), (1280, "light")] {
        browser.resize(width, 800);
        browser.prefer(scheme);
        browser.open(&daemon.url());
        browser.run("document.querySelectorAll('details').forEach((details) => { details.open = true })");
        let found = browser.run(COMPLAINTS);
        assert_eq!(found["complaints"].to_string(), "[]", "{scheme} at {width}");
        assert_eq!(found["dark"], scheme == "dark");
        let count = |what: &str| found[what].as_u64().unwrap();
        assert!(count("seen") > 100 && count("charts") >= 5 && count("tables") >= 5, "{found}");
        // What is broken stands before all that is not.
        let first = browser.run("return document.querySelector('main').firstElementChild.className");
        assert_eq!(first, "trouble");
    }
    assert_eq!(browser.console(), [""; 0]);
}
