//! What goes through a forward arrives whole, in both directions, and ends as it ended on the other side.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, pin_mut};
use tokio_postgres::NoTls;

use crate::support::client::{ask, connect, run_psql};
use crate::support::postgres::{PASSWORD, SCRAM, TRUSTED};
use crate::support::{Bastion, Daemon, PATIENCE, Postgres, eventually, runtime, tunnel};

fn usual() -> (Bastion, Daemon) {
    tunnel("", &Postgres::shared().section("analytics", "prod"))
}

#[test]
fn queries_of_a_library_and_of_psql() {
    let (_bastion, daemon) = usual();
    let address = daemon.address("analytics");
    let answer = runtime().block_on(ask(address, "SELECT current_user::text")).unwrap();
    assert_eq!(answer, TRUSTED);
    assert_eq!(run_psql(address, &format!("user={TRUSTED}"), "SELECT 6 * 7").unwrap(), "42");
    let tls = format!("user={SCRAM} password='{PASSWORD}' sslmode=require channel_binding=require");
    let through_tls = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(run_psql(address, &tls, through_tls).unwrap(), "t");
    let metrics = daemon.metrics();
    assert_eq!(metrics["client_connections_total{database=\"analytics\",outcome=\"carried\"}"], 3.0);
    assert_eq!(metrics["client_startups_total{database=\"analytics\",encryption=\"tls\"}"], 2.0);
    assert_eq!(metrics["client_startups_total{database=\"analytics\",encryption=\"plain\"}"], 1.0);
    eventually("all clients have left", || {
        (daemon.metric("clients_active{database=\"analytics\"}") == 0.0).then_some(())
    });
}

/// Two hundred megabytes that no compression or repetition makes easier.
const ROWS: u64 = 200 * 1024;

fn rows() -> impl Iterator<Item = String> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..ROWS).map(move |n| {
        let mut line = format!("{n}\t");
        while line.len() < 1023 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            line.push_str(&format!("{state:016x}"));
        }
        line.truncate(1023);
        line + "\n"
    })
}

fn hex(context: Context) -> String {
    data_encoding::HEXLOWER.encode(context.finish().as_ref())
}

#[test]
fn a_copy_of_two_hundred_megabytes_in_and_out() {
    let (_bastion, daemon) = usual();
    let address = daemon.address("analytics");
    let postgres = Postgres::shared();
    let mut expected = Context::new(&SHA256);
    rows().for_each(|row| expected.update(row.as_bytes()));
    let expected = hex(expected);
    let (copied_in, copied_out) = runtime().block_on(async {
        let client = connect(address).await.unwrap();
        client
            .batch_execute("CREATE TABLE IF NOT EXISTS bulk (n bigint, text text); TRUNCATE bulk")
            .await
            .unwrap();
        let sink = client.copy_in::<_, Bytes>("COPY bulk FROM STDIN").await.unwrap();
        pin_mut!(sink);
        for row in rows() {
            sink.feed(Bytes::from(row)).await.unwrap();
        }
        let copied_in = sink.finish().await.unwrap();
        let out = client.copy_out("COPY (SELECT * FROM bulk ORDER BY n) TO STDOUT").await.unwrap();
        pin_mut!(out);
        let mut copied_out = Context::new(&SHA256);
        while let Some(block) = out.next().await {
            copied_out.update(&block.unwrap());
        }
        (copied_in, hex(copied_out))
    });
    assert_eq!(copied_in, ROWS);
    assert_eq!(copied_out, expected, "what came out is not what went in");
    // And not only the same twice over: the database itself has the right bytes.
    let sql = "SELECT encode(sha256(convert_to(string_agg(n || E'\\t' || text || E'\\n', '' ORDER BY n), 'UTF8')), 'hex') \
               FROM bulk WHERE n < 1000";
    let mut first = Context::new(&SHA256);
    rows().take(1000).for_each(|row| first.update(row.as_bytes()));
    assert_eq!(postgres.sql("warehouse", sql), hex(first));
    postgres.sql("warehouse", "DROP TABLE bulk");
}

#[test]
fn a_query_is_cancelled_through_the_forward() {
    let (_bastion, daemon) = usual();
    let address = daemon.address("analytics");
    let error = runtime().block_on(async {
        let client = connect(address).await.unwrap();
        let cancel = client.cancel_token();
        let sleeping = client.batch_execute("SELECT pg_sleep(600)");
        let cancelling = async {
            // The query has to run before it can be cancelled.
            let running = "SELECT count(*)::text FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'";
            while ask(address, running).await.unwrap() == "0" {
                tokio::task::yield_now().await;
            }
            cancel.cancel_query(NoTls).await.unwrap();
        };
        let (slept, ()) =
            tokio::time::timeout(PATIENCE, async { tokio::join!(sleeping, cancelling) }).await.unwrap();
        slept.unwrap_err()
    });
    assert_eq!(error.code().unwrap().code(), "57014", "{error}");
}

#[test]
fn half_close_passes_both_ways() {
    // A server that answers only when it has heard everything, and says goodbye only then.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let bastion = Bastion::start();
    let config = format!(
        "{}[databases.echo]\nbastion = \"prod\"\nhost = \"127.0.0.1\"\nport = {}\nlisten = [\"127.0.0.1:0\", \"[::1]:0\"]\n\
         probe = {{ level = \"off\" }}\n",
        bastion.section("prod", bastion.port),
        server.local_addr().unwrap().port()
    );
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    let listening = daemon.database("echo")["listen"].clone();
    for address in listening.as_array().unwrap() {
        let mut client = TcpStream::connect(address.as_str().unwrap()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let question = vec![b'q'; 1 << 20];
        client.write_all(&question).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (mut far, _) = server.accept().unwrap();
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).unwrap();
        assert_eq!(heard.len(), question.len());
        far.write_all(&heard).unwrap();
        drop(far);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, question);
    }
    eventually("all clients have left", || {
        (daemon.metric("clients_active{database=\"echo\"}") == 0.0).then_some(())
    });
    let carried = daemon.metric("client_bytes_total{database=\"echo\",direction=\"to_database\"}");
    assert_eq!(carried, f64::from(2 << 20));
}
