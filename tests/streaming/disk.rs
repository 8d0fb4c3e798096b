//! A disk that is full: an error, nothing lost, and on it goes once there is room.

use std::path::{Path, PathBuf};
use std::process::Command;

use pg_conversation_tests::{Rng, Server, Session, Uuid, command, oldest};

use crate::desk::{Desk, Stream, code};

/// A file system of a few megabytes, gone with the value.
struct Tiny(PathBuf);

impl Tiny {
    /// None where this user may mount nothing.
    fn mount(megabytes: u32) -> Option<Tiny> {
        let dir = std::env::temp_dir().join(format!("pgc-tiny-{}", std::process::id()));
        std::fs::create_dir_all(&dir).ok()?;
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=0777"), "tmpfs"])
            .arg(&dir)
            .output();
        if mount.is_ok_and(|output| output.status.success()) {
            return Some(Tiny(dir));
        }
        let _ = std::fs::remove_dir(&dir);
        None
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Text that does not shrink when it is packed.
fn noise(rng: &mut Rng, bytes: usize) -> String {
    (0..bytes).map(|_| char::from(b' ' + rng.below(95) as u8)).collect()
}

#[test]
fn a_full_disk_loses_nothing_and_the_stream_goes_on_when_there_is_room() {
    let Some(tiny) = Tiny::mount(24) else {
        println!("skipped: mounting a file system of a few megabytes takes root");
        return;
    };
    let space = tiny.0.join("space");
    assert!(command(Path::new("mkdir")).arg(&space).status().unwrap().success());
    let server = Server::private(oldest(), "fsync = off\nautovacuum = off\n");
    let desk = Desk::on(&server);
    let mut superuser = desk.database.superuser();
    superuser.run(&format!("create tablespace tiny location '{}'", space.display()));
    superuser.run(
        "alter table message_chunks set tablespace tiny; \
         alter index message_chunks_pkey set tablespace tiny; \
         alter table messages set tablespace tiny",
    );
    let ballast = tiny.0.join("ballast");
    std::fs::write(&ballast, vec![1; 14 << 20]).expect("room for the ballast");

    let mut rng = Rng::new(70);
    for mode in ["sync", "async"] {
        let mut member = desk.member();
        member.run(&format!("set pg_conversation.chunk_commit = {mode}"));
        let message = member.open(desk.conversation);
        let small = member.open(desk.conversation);
        member.append(small, "small", Some(0)).unwrap();
        let mut text = String::new();
        let mut next = 0;
        let refused = loop {
            let content = noise(&mut rng, 100_000);
            match member.append(message, &content, Some(next)) {
                Ok(answer) => {
                    next += 1;
                    assert_eq!(answer.next, next);
                    text += &content;
                }
                Err(error) => {
                    assert_eq!(code(&error), "53100");
                    break content;
                }
            }
            assert!(next < 1000, "the disk is never full");
        };
        // What was acknowledged is there, and can be read.
        assert!(next > 10 && member.text(message).unwrap() == text, "{mode}: {next} chunks");
        assert_eq!(code(&member.append(message, &refused, Some(next)).unwrap_err()), "53100");
        let insert = member.insert(message, &refused, next, true).unwrap_err();
        assert_eq!(code(&insert), "53100");
        // Ending needs room for the text as well; refused, it leaves the message as it was.
        assert_eq!(code(&member.finish(message).unwrap_err()), "53100");
        assert_eq!(code(&member.stop(message, None).unwrap_err()), "53100");
        assert_eq!(member.status(message), "streaming");
        assert!(member.text(message).unwrap() == text, "{mode}");

        std::fs::remove_file(&ballast).expect("the ballast goes");
        assert_eq!(member.append(message, &refused, Some(next)).unwrap().next, next + 1);
        member.append_last(message, "!", Some(next + 1)).unwrap();
        text += &refused;
        text.push('!');
        assert!(member.text(message).unwrap() == text, "{mode}");
        assert_eq!(member.status(message), "completed");
        let stored: String = content(&mut superuser, message);
        assert!(stored == text, "{mode}");
        member.finish(small).unwrap();
        assert_eq!(content(&mut superuser, small), "small");

        for sql in [
            "select cleanup_finished_streams(interval '0')",
            "delete from messages",
            "vacuum messages",
            "vacuum message_chunks",
            "checkpoint",
        ] {
            superuser.run(sql);
        }
        std::fs::write(&ballast, vec![1; 14 << 20]).expect("room for the ballast again");
    }
}

fn content(client: &mut pg_conversation_tests::Client, message: Uuid) -> String {
    client.value(&format!("select content from messages where id = '{message}'"))
}
