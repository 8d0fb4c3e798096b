//! A cable between a client and the server that can be cut, and that can lose answers.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use pg_conversation_tests::{Client, NoTls, Session};
use postgres::config::Host;

use crate::desk::Desk;

pub struct Wire {
    dir: PathBuf,
    ends: Arc<Mutex<Vec<UnixStream>>>,
    deaf: Arc<AtomicBool>,
}

impl Wire {
    /// A session of the desk's user over a new wire.
    pub fn member(desk: &Desk) -> (Wire, Client) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("pgc-wire-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).expect("a directory for the socket");
        let config = desk.database.server.config(&desk.database.name, "member");
        let port = config.get_ports()[0];
        let file = format!(".s.PGSQL.{port}");
        let Host::Unix(server) = &config.get_hosts()[0] else { panic!("the server has a socket") };
        let server = server.join(&file);
        let listener = UnixListener::bind(dir.join(&file)).expect("a socket");
        let wire = Wire { dir, ends: Arc::default(), deaf: Arc::default() };
        let (ends, deaf) = (wire.ends.clone(), wire.deaf.clone());
        thread::spawn(move || {
            let (client, _) = listener.accept().expect("one client");
            let server = UnixStream::connect(server).expect("the server listens");
            let copy = |stream: &UnixStream| stream.try_clone().expect("a handle");
            ends.lock().expect("no panic").extend([copy(&client), copy(&server)]);
            carry(copy(&client), copy(&server), Arc::default());
            carry(server, client, deaf);
        });
        let mut own = postgres::Config::new();
        own.host_path(&wire.dir)
            .port(port)
            .user("member")
            .dbname(&desk.database.name)
            .application_name("wire");
        let mut client = own.connect(NoTls).expect("the server takes the connection");
        client.run(&format!("set pg_conversation.user_id = '{}'", desk.user));
        (wire, client)
    }

    /// From now on nothing that the server says arrives.
    pub fn lose_answers(&self) {
        self.deaf.store(true, Ordering::SeqCst);
    }

    /// Both ends see the other one gone, without a word.
    pub fn cut(&self) {
        for end in self.ends.lock().expect("no panic").drain(..) {
            // An end that has gone already is as good.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.cut();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn carry(mut from: UnixStream, mut to: UnixStream, deaf: Arc<AtomicBool>) {
    thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            if !deaf.load(Ordering::SeqCst) && to.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
