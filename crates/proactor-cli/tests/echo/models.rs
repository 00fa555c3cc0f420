//! What is different between the models, and the options that belong to some of them.

use crate::support::{Server, echo_all, round_trip, run_to_end};

fn refusal(args: &[&str]) -> String {
    let args: Vec<&str> =
        ["echo", "--listen", "127.0.0.1:0"].into_iter().chain(args.iter().copied()).collect();
    let ended = run_to_end(&args, &[]);
    assert_eq!(ended.status.code(), Some(2), "{args:?}: {ended:?}");
    assert_eq!((ended.stdout.len(), ended.stderr.len()), (0, 1), "{args:?}: {ended:?}");
    ended.stderr[0].clone()
}

#[test]
fn options_of_another_model_are_refused() {
    for (model, option, value) in [
        ("threads", "--workers", "2"),
        ("overlapped", "--workers", "2"),
        ("threads", "--concurrency", "2"),
        ("readiness", "--concurrency", "2"),
        ("overlapped", "--concurrency", "2"),
        ("threads", "--backend", "epoll"),
        ("readiness", "--backend", "epoll"),
        ("threads", "--accepts", "2"),
        ("readiness", "--accepts", "2"),
        ("threads", "--readiness", "poll"),
        ("overlapped", "--readiness", "poll"),
        ("port", "--readiness", "poll"),
    ] {
        let line = refusal(&["--model", model, option, value]);
        let expected = format!("{option} means nothing to --model {model}: it is for ");
        assert!(line.contains(&expected), "{line}");
    }
    let line = refusal(&["--model", "port", "--alternate-accept"]);
    assert!(line.contains("it is for overlapped"), "{line}");
}

#[test]
fn a_model_that_does_not_exist_is_refused() {
    let line = refusal(&["--model", "fibers"]);
    assert!(line.contains("fibers") && line.contains("readiness"), "{line}");
    let line = refusal(&["--model", "readiness", "--readiness", "kqueues"]);
    assert!(line.contains("kqueues") && line.contains("select"), "{line}");
}

#[test]
fn totals_name_the_model_and_what_it_counts() {
    for (kind, model, counter) in [
        ("epoll", "port", "completions"),
        ("overlapped_epoll", "overlapped", "routines"),
        ("readiness", "readiness", "events"),
        ("threads", "threads", "receives"),
    ] {
        let server = Server::start(kind, &[]);
        round_trip(&mut server.connect(), 1, 100);
        let totals = server.stop().totals();
        assert_eq!(totals["model"], model, "{totals}");
        assert!(totals[counter].as_u64().is_some_and(|count| count > 0), "{totals}");
    }
}

#[test]
fn every_model_works_for_each_message() {
    for kind in ["epoll", "overlapped_epoll", "readiness", "threads"] {
        let server = Server::start(kind, &["--work-us", "200"]);
        assert!(server.first_line.contains("200 µs of work"), "{}", server.first_line);
        let mut client = server.connect();
        let before = server.cpu_ticks();
        // 500 messages of 200 µs are 10 ticks of 10 ms at least, on a machine that was as fast when
        // the work was measured; half of it proves that work is done.
        (0..500).for_each(|_| round_trip(&mut client, 1, 10));
        let ticks = server.cpu_ticks() - before;
        drop(client);
        assert_eq!(server.stop().totals()["bytes_sent"], 5000);
        assert!(ticks >= 2, "{kind}: {ticks} ticks of processor time");
    }
}

#[test]
fn select_refuses_more_sessions_than_it_has_room_for() {
    let args = ["--model", "readiness", "--readiness", "select", "--max-sessions", "2000"];
    let line = refusal(&args);
    assert!(line.contains("1024") && line.contains("select"), "{line}");
}

#[test]
fn select_turns_clients_away_that_it_cannot_watch() {
    use std::io::Read;

    let mut server = Server::start("select", &[]);
    let mut clients: Vec<_> = (0..1100).map(|_| server.connect()).collect();
    server.await_stderr("clients are refused: select");
    // The first are served; the last of all are not.
    for (index, client) in clients.iter_mut().enumerate().take(900) {
        round_trip(client, index as u64, 10);
    }
    let last = clients.last_mut().unwrap();
    assert!(matches!(last.read(&mut [0]), Ok(0) | Err(_)), "a refused client is closed");
    drop(clients);
    echo_all(server.connect(), 1, 100_000, 1000);
    let totals = server.stop().totals();
    let refused = totals["refused"].as_u64().unwrap();
    assert!((76..=200).contains(&refused), "{totals}");
}
