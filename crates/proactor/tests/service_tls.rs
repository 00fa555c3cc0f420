//! TLS as a filter of services: handshake, data both ways, ends, reload; against rustls, against
//! the server layer's own client, and against `openssl s_client`.
#![cfg(feature = "tls")]

mod common;
mod service_common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use proactor::service::framing::{LengthPrefixed, Lines};
use proactor::service::tls::rustls::pki_types::pem::PemObject;
use proactor::service::tls::rustls::pki_types::{CertificateDer, ServerName};
use proactor::service::tls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring::default_provider,
};
use proactor::service::tls::{TlsClient, TlsInformation, TlsServer};
use proactor::service::{
    ClientService, HandlerResult, Runtime, ServerBuilder, ServerService, Session, SessionHandler,
    Timeouts,
};
use service_common::*;

type TlsTcp = StreamOwned<ClientConnection, TcpStream>;

fn certificate(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/certificates").join(name)
}

fn tls() -> TlsServer {
    TlsServer::from_pem_files(certificate("first.pem"), certificate("first.key.pem")).unwrap()
}

/// A blocking client that trusts the authority of the tests, or nobody.
fn tls_client(address: SocketAddr, trusting: bool) -> TlsTcp {
    let mut roots = RootCertStore::empty();
    if trusting {
        roots.add(CertificateDer::from_pem_file(certificate("authority.pem")).unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(connection, connect(address))
}

/// Notes its callbacks and sends back what comes; `quit` ends the session.
fn echo(log: &Log) -> ServerBuilder {
    let log = log.clone();
    ServerService::builder(move |_| {
        let on_frame = |session: &Session, frame: &[u8]| {
            if frame == b"quit" {
                session.disconnect();
                return Ok(());
            }
            Ok(session.send(frame)?)
        };
        Noting { log: log.clone(), on_frame }
    })
    .listen("127.0.0.1:0")
}

fn start(builder: ServerBuilder, runtime: &Runtime) -> (ServerService, SocketAddr) {
    let server = builder.start_on(runtime).unwrap();
    let address = server.local_address().unwrap();
    (server, address)
}

fn read_line(client: &mut impl Read) -> String {
    let mut line = String::new();
    loop {
        let mut byte = [0];
        client.read_exact(&mut byte).expect("the line comes");
        match byte[0] {
            b'\n' => return line,
            byte => line.push(char::from(byte)),
        }
    }
}

on_each_backend! {
    fn frames_go_both_ways_and_both_sides_end_in_order(ports: &Ports) {
        let (runtime, log) = (runtime(ports), Log::default());
        let (server, address) = start(echo(&log).framing(Lines::new()).filter(tls()), &runtime);
        let mut client = tls_client(address, true);
        for line in ["one", "two", "three"] {
            writeln!(client, "{line}").unwrap();
            assert_eq!(read_line(&mut client), line);
        }
        // The peer ends, and says so.
        client.conn.send_close_notify();
        client.flush().unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "we say so too");
        drop(client);
        log.wait_for("disconnected: the peer ended the connection");

        // We end, and say so: rustls reports an end without it as an error.
        let mut client = tls_client(address, true);
        client.write_all(b"last words\nquit\n").unwrap();
        assert_eq!(read_line(&mut client), "last words");
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        drop(client);
        wait_until("the session ends", || log.count("disconnected") == 2);
        log.check_order();
        assert_eq!(server.handle().snapshot().disconnected.filter, 0);
    }

    fn much_data_goes_both_ways_at_once(ports: &Ports) {
        const BYTES: usize = 8 * 1024 * 1024;
        let (runtime, log) = (runtime(ports), Log::default());
        let (server, address) = start(echo(&log).filter(tls()), &runtime);
        let mut client = tls_client(address, true);
        // Before the handshake rustls keeps only so much of what is written.
        client.conn.complete_io(&mut client.sock).unwrap();
        let mut writer = client.sock.try_clone().unwrap();
        let client = Arc::new(Mutex::new(client));
        // A rustls connection is one object for both directions, so the test turns it by hand:
        // what is to be written is made under the lock, and written without it.
        let sending = Arc::clone(&client);
        let thread = std::thread::spawn(move || {
            let bytes = pattern(7, BYTES);
            for piece in bytes.chunks(10_000) {
                let mut wire = Vec::new();
                {
                    let connection = &mut sending.lock().unwrap().conn;
                    connection.writer().write_all(piece).unwrap();
                    while connection.wants_write() {
                        connection.write_tls(&mut wire).unwrap();
                    }
                }
                writer.write_all(&wire).unwrap();
            }
        });
        let mut socket = client.lock().unwrap().sock.try_clone().unwrap();
        let (mut received, mut piece) = (Vec::new(), vec![0; 100_000]);
        while received.len() < BYTES {
            let count = socket.read(&mut piece).unwrap();
            assert_ne!(count, 0, "cut off after {} bytes", received.len());
            let mut wire = &piece[..count];
            let connection = &mut client.lock().unwrap().conn;
            while !wire.is_empty() {
                connection.read_tls(&mut wire).unwrap();
                let state = connection.process_new_packets().unwrap();
                let start = received.len();
                received.resize(start + state.plaintext_bytes_to_read(), 0);
                connection.reader().read_exact(&mut received[start..]).unwrap();
            }
        }
        thread.join().unwrap();
        assert_same_bytes(&received, &pattern(7, BYTES));
        drop(socket);
        drop(client);
        wait_until("the session ends", || server.handle().session_count() == 0);
    }

    fn services_talk_to_each_other(ports: &Ports) {
        let (runtime, log) = (runtime(ports), Log::default());
        let framing = LengthPrefixed::u32().with_maximum_frame_bytes(1 << 20);
        let (server, address) = start(echo(&log).framing(framing).filter(tls()), &runtime);
        let client_tls =
            TlsClient::from_pem_file(certificate("authority.pem"), "first.test").unwrap();
        let (at_client, told) = (Log::default(), Arc::new(Mutex::new(None)));
        let (note, tell) = (at_client.clone(), Arc::clone(&told));
        let client = ClientService::builder(move |_| Asking { log: note.clone(), told: Arc::clone(&tell) })
            .connect(address)
            .framing(framing)
            .filter(client_tls)
            .start_on(&runtime)
            .unwrap();
        at_client.wait_for("300000 bytes came back");
        let information: Arc<TlsInformation> = told.lock().unwrap().clone().unwrap();
        assert_eq!(information.protocol_version, "TLSv1_3");
        assert_eq!(information.peer_certificates.len(), 1);
        let at_server = server.handle().sessions()[0].filter_information::<TlsInformation>().unwrap();
        assert_eq!(at_server.server_name.as_deref(), Some("first.test"));
        assert_eq!(at_server.cipher_suite, information.cipher_suite);
        client.stop(Duration::ZERO);
        log.wait_for("disconnected: the peer ended the connection");
        log.check_order();
        at_client.check_order();
    }

    fn a_certificate_is_reloaded_without_touching_sessions(ports: &Ports) {
        let directory = tempfile::tempdir().unwrap();
        let (pem, key) = (directory.path().join("pem"), directory.path().join("key"));
        let install = |name: &str| {
            std::fs::copy(certificate(&format!("{name}.pem")), &pem).unwrap();
            std::fs::copy(certificate(&format!("{name}.key.pem")), &key).unwrap();
        };
        install("first");
        let tls = TlsServer::from_pem_files(&pem, &key).unwrap();
        let (runtime, log) = (runtime(ports), Log::default());
        let builder = echo(&log).framing(Lines::new()).filter(tls.clone());
        let (_server, address) = start(builder, &runtime);
        let shown = |client: &mut TlsTcp| {
            client.write_all(b"hello\n").unwrap();
            assert_eq!(read_line(client), "hello");
            client.conn.peer_certificates().unwrap()[0].clone().into_owned()
        };
        let of = |name: &str| CertificateDer::from_pem_file(certificate(name)).unwrap();
        let mut old = tls_client(address, true);
        assert_eq!(shown(&mut old), of("first.pem"));
        install("second");
        tls.reload().unwrap();
        let mut new = tls_client(address, true);
        assert_eq!(shown(&mut new), of("second.pem"));
        assert_eq!(shown(&mut old), of("first.pem"), "it goes on with what it has");
        // What is broken is not taken, and what was there stays.
        std::fs::copy(certificate("first.key.pem"), &key).unwrap();
        let error = tls.reload().unwrap_err();
        assert!(error.to_string().contains("pem"), "{error}");
        std::fs::write(&pem, "nothing").unwrap();
        assert!(tls.reload().unwrap_err().to_string().contains("no certificate"));
        assert_eq!(shown(&mut tls_client(address, true)), of("second.pem"));
    }

    fn what_is_no_tls_ends_without_a_callback(ports: &Ports) {
        let (runtime, log) = (runtime(ports), Log::default());
        let (server, address) = start(echo(&log).framing(Lines::new()).filter(tls()), &runtime);
        let mut plain = connect(address);
        plain.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        // An alert, then the end.
        plain.read_to_end(&mut answer).unwrap();
        assert_eq!(answer.first(), Some(&21), "{answer:?}");
        // A client that does not trust the certificate says so, and goes.
        let mut distrusting = tls_client(address, false);
        assert!(distrusting.write_all(b"hello\n").is_err());
        drop(distrusting);
        wait_until("both are over", || server.handle().snapshot().disconnected.filter == 2);
        assert_eq!(log.all(), [""; 0]);
        let mut good = tls_client(address, true);
        good.write_all(b"hello\n").unwrap();
        assert_eq!(read_line(&mut good), "hello");
    }

    fn a_connection_that_is_cut_off_is_told_from_one_that_ends(ports: &Ports) {
        let (runtime, log) = (runtime(ports), Log::default());
        let (_server, address) = start(echo(&log).framing(Lines::new()).filter(tls()), &runtime);
        let mut client = tls_client(address, true);
        client.write_all(b"hello\n").unwrap();
        assert_eq!(read_line(&mut client), "hello");
        client.sock.shutdown(Shutdown::Write).unwrap();
        log.wait_for("disconnected: the connection was cut off");
        log.check_order();
    }

    fn who_does_not_shake_hands_is_disconnected(ports: &Ports) {
        let (runtime, log) = (runtime(ports), Log::default());
        let handshake = Some(Duration::from_millis(50));
        let timeouts = Timeouts { handshake, ..Timeouts::default() };
        let builder = echo(&log).framing(Lines::new()).filter(tls()).timeouts(timeouts);
        let (server, address) = start(builder, &runtime);
        let mut silent = connect(address);
        let mut begun = connect(address);
        // The head of a record, and no more.
        begun.write_all(&[22, 3, 1, 2, 0]).unwrap();
        let both = || server.handle().snapshot().disconnected.timed_out == 2;
        wait_until("both are disconnected", both);
        for stream in [&mut silent, &mut begun] {
            assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
        }
        assert_eq!(log.all(), [""; 0]);
    }

    fn the_handshake_may_come_byte_by_byte_and_sends_wait_for_it(ports: &Ports) {
        let (runtime, log) = (runtime(ports), Log::default());
        let (server, address) = start(echo(&log).framing(Lines::new()).filter(tls()), &runtime);
        let mut client = tls_client(address, true);
        let mut hello = Vec::new();
        client.conn.write_tls(&mut hello).unwrap();
        let (last, first) = hello.split_last().unwrap();
        client.sock.set_nodelay(true).unwrap();
        for byte in first {
            client.sock.write_all(&[*byte]).unwrap();
        }
        wait_until("the session is there", || server.handle().session_count() == 1);
        let session = server.handle().sessions().remove(0);
        session.send("before the handshake").unwrap();
        assert!(session.filter_information::<TlsInformation>().is_none());
        session.notify("told before").unwrap();
        client.sock.write_all(&[*last]).unwrap();
        assert_eq!(read_line(&mut client), "before the handshake");
        client.write_all(b"after it\n").unwrap();
        assert_eq!(read_line(&mut client), "after it");
        assert_eq!(log.all()[0], "connected", "{:?}", log.all());
        drop(client);
        log.wait_for("disconnected");
        log.check_order();
    }

    fn who_ends_its_sending_says_so_and_still_receives(ports: &Ports) {
        let (runtime, log) = (runtime(ports), Log::default());
        let builder = noting(&log, |session, frame| {
            if frame == b"first" {
                session.send("last words")?;
                session.end_sending();
            }
            Ok(())
        });
        let (server, address) = start(builder.framing(Lines::new()).filter(tls()), &runtime);
        let mut client = tls_client(address, true);
        client.write_all(b"first\n").unwrap();
        assert_eq!(read_line(&mut client), "last words");
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "it says that nothing more comes");
        client.write_all(b"second\n").unwrap();
        log.wait_for("received second");
        assert!(!server.handle().sessions()[0].is_ending());
        client.conn.send_close_notify();
        client.flush().unwrap();
        log.wait_for("disconnected: the peer ended the connection");
        log.check_order();
        assert_eq!(server.handle().snapshot().disconnected.filter, 0);
    }

    fn receiving_pauses_and_goes_on_with_what_was_decrypted(ports: &Ports) {
        let (runtime, log) = (runtime(ports), Log::default());
        let pausing = log.clone();
        let builder = ServerService::builder(move |_| {
            let on_frame = |session: &Session, frame: &[u8]| {
                session.pause_receiving();
                Ok(session.send(frame)?)
            };
            Noting { log: pausing.clone(), on_frame }
        })
        .listen("127.0.0.1:0")
        .framing(Lines::new())
        .filter(tls());
        let (server, address) = start(builder, &runtime);
        let mut client = tls_client(address, true);
        client.write_all(b"one\ntwo\nthree\n").unwrap();
        client.conn.send_close_notify();
        client.flush().unwrap();
        for (lines_before, line) in ["one", "two", "three"].into_iter().enumerate() {
            assert_eq!(read_line(&mut client), line);
            // It has paused before it answered.
            assert_eq!(log.count("received"), lines_before + 1);
            server.handle().sessions()[0].resume_receiving();
        }
        log.wait_for("disconnected: the peer ended the connection");
        log.check_order();
    }
}

/// Asks for a large frame and notes that it came back.
struct Asking {
    log: Log,
    told: Arc<Mutex<Option<Arc<TlsInformation>>>>,
}

impl SessionHandler for Asking {
    fn connected(&mut self, session: &Session) -> HandlerResult {
        self.log.note(session, "connected");
        *self.told.lock().unwrap() = session.filter_information();
        Ok(session.send(pattern(3, 300_000))?)
    }
    fn received(&mut self, session: &Session, frame: &[u8]) -> HandlerResult {
        assert_same_bytes(frame, &pattern(3, 300_000));
        self.log.note(session, format!("{} bytes came back", frame.len()));
        Ok(())
    }
    fn disconnected(&mut self, session: &Session, reason: proactor::service::DisconnectReason) {
        self.log.note(session, format!("disconnected: {reason}"));
    }
}

/// A real client that is not rustls, in both versions of the protocol.
#[test]
fn openssl_s_client_talks_to_it() {
    if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: `openssl` is not installed");
        return;
    }
    let log = Log::default();
    let server = echo(&log).framing(Lines::new()).filter(tls()).start().unwrap();
    let address = server.local_address().unwrap();
    for version in ["-tls1_3", "-tls1_2"] {
        let mut client = Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", "-verify_hostname", "localhost"])
            .arg(version)
            .arg("-CAfile")
            .arg(certificate("authority.pem"))
            .args(["-connect", &address.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = client.stdin.take().unwrap();
        let mut output = BufReader::new(client.stdout.take().unwrap());
        for line in ["hello\n", "from openssl\n"] {
            input.write_all(line.as_bytes()).unwrap();
            let mut answer = String::new();
            output.read_line(&mut answer).unwrap();
            assert_eq!(answer, line, "{version}");
        }
        input.write_all(b"quit\n").unwrap();
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        drop(input);
        client.wait().unwrap();
    }
    wait_until("both sessions end", || log.count("disconnected") == 2);
    log.check_order();
    server.stop(Duration::from_secs(1));
}
