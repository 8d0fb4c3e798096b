//! One call waits behind another for the same conversation, and is judged by what that one has left.

use std::thread;

use pg_conversation_tests::{Client, Session};

use crate::members::{World, call};

impl World {
    /// Calls both, the second one once the first has the conversation, which the first gives up only
    /// when the second waits for it.
    fn one_behind_the_other(
        &mut self,
        first: (&mut Client, &str),
        second: (&mut Client, &str),
        end: &str,
    ) -> (String, String) {
        let (one, two) = (self.words(first.1), self.words(second.1));
        let pid: i32 = second.0.value("select pg_backend_pid()");
        first.0.run("begin");
        let answer = call(first.0, &one);
        let waiting =
            format!("select exists (select from pg_locks where pid = {pid} and not granted)");
        let other = thread::scope(|scope| {
            let behind = scope.spawn(|| call(second.0, &two));
            while !behind.is_finished() && !self.superuser.value::<bool>(&waiting) {
                thread::sleep(std::time::Duration::from_millis(2));
            }
            first.0.run(end);
            behind.join().expect("no panic")
        });
        (answer, other)
    }
}

/// Each call with the one that waits behind it, as they answer in READ COMMITTED; who is in it then.
/// Users: 0 owns the conversation, if anybody; 1 and 2 are in it as owners; 3 is a colleague. `3e` is
/// user 3 as editor.
const QUEUES: &[(&str, &str, &str, &str, &str)] = &[
    // Two who remove each other: the second one is out when his turn comes.
    ("owned", "1 remove 2", "2 remove 1", "true P0002", "0o 1o"),
    ("nobody's", "1 remove 2", "2 remove 1", "true P0002", "1o"),
    // He has left by himself, or is no manager any more.
    ("nobody's", "1 leave", "2 remove 1", "true false", "2o"),
    ("nobody's", "1 role 2 viewer", "2 role 1 viewer", "true 42501", "1o 2v"),
    ("nobody's", "1 role 2 viewer", "2 remove 1", "true 42501", "1o 2v"),
    ("nobody's", "1 role 2 editor", "2 leave", "true true", "1o"),
    // The last two leave: one stays.
    ("nobody's", "1 leave", "2 leave", "true 55000", "2o"),
    ("nobody's", "1 role 1 editor", "2 role 2 editor", "true 55000", "1e 2o"),
    ("nobody's", "1 leave", "2 role 2 viewer", "true 55000", "2o"),
    ("owned", "1 leave", "2 leave", "true true", "0o"),
    // It changes hands twice: whoever gave it away has no more to give; a manager takes it back.
    ("owned", "0 transfer 3", "0 transfer 1", "true 42501", "3o 1o 2o 0e"),
    ("owned", "0 transfer 1", "2 transfer 0", "true true", "0o 2o 1e"),
    ("owned", "0 transfer 1", "0 transfer 1", "true 42501", "1o 2o 0e"),
    ("owned", "1 transfer 1", "1 transfer 1", "true false", "1o 2o 0e"),
    // The new owner cannot be removed, and whoever was removed can be made the owner.
    ("owned", "0 transfer 1", "2 remove 1", "true 55000", "1o 2o 0e"),
    ("owned", "0 transfer 1", "2 remove 0", "true true", "1o 2o"),
    ("owned", "0 remove 1", "2 transfer 1", "true true", "1o 2o 0e"),
    ("owned", "0 remove 1", "1 transfer 1", "true P0002", "0o 2o"),
    ("nobody's", "1 transfer 3", "2 leave", "true true", "3o 1o"),
    // One user, added twice.
    ("owned", "1 add 3 editor", "2 add 3 owner", "true false", "0o 1o 2o 3e"),
    ("owned", "1 add 3 editor", "2 remove 3", "true true", "0o 1o 2o"),
    ("owned", "1 add 3 editor", "2 role 3 editor", "true false", "0o 1o 2o 3e"),
    ("owned", "1 remove 2", "1 role 2 viewer", "true P0002", "0o 1o"),
    ("owned", "0 transfer 3", "1 add 3 viewer", "true false", "3o 1o 2o 0e"),
    ("owned", "1 remove 2", "2 add 3", "true P0002", "0o 1o"),
    ("owned", "1 role 2 viewer", "2 add 3", "true 42501", "0o 1o 2v"),
    // Here 3 is a viewer, who holds up nobody by leaving.
    ("joined", "3 leave", "1 role 3 owner", "true P0002", "0o 1o 2o"),
    ("joined", "3 leave", "1 remove 3", "true false", "0o 1o 2o"),
    ("joined", "3 leave", "1 add 3 editor", "true true", "0o 1o 2o 3e"),
    ("joined", "3 leave", "1 transfer 3", "true true", "3o 1o 2o 0e"),
    ("joined", "1 role 3 editor", "3 leave", "true true", "0o 1o 2o"),
    ("joined", "1 remove 3", "3 leave", "true false", "0o 1o 2o"),
    ("joined", "1 role 3 owner", "3 leave", "true true", "0o 1o 2o"),
    ("joined", "0 transfer 3", "3 leave", "true 55000", "3o 1o 2o 0e"),
    ("joined", "0 delete", "3 leave", "true true", "0o 1o 2o"),
    ("joined", "0 purge", "3 leave", "true false", ""),
    // Deleted, it has members for nobody; purged, it is not there.
    ("owned", "0 delete", "1 add 3", "true P0002", "0o 1o 2o"),
    ("owned", "0 delete", "1 leave", "true P0002", "0o 1o 2o"),
    ("owned", "0 delete", "0 transfer 3", "true P0002", "0o 1o 2o"),
    ("owned", "0 purge", "1 add 3", "true P0002", ""),
    ("owned", "0 purge", "0 role 1 viewer", "true P0002", ""),
    ("owned", "1 add 3", "0 purge", "true true", ""),
    ("owned", "1 add 3", "0 delete", "true true", "0o 1o 2o 3v"),
    // A plain UPDATE goes by what its snapshot shows.
    ("owned", "1 remove 2", "2 delete", "true true", "0o 1o"),
];

#[test]
fn whoever_comes_second_is_judged_by_what_the_first_has_left() {
    let mut world = World::new();
    let roles = [(1, "owner"), (2, "owner"), (3, "viewer")];
    let (mut wrong, mut refused) = (Vec::new(), 0);
    for level in ["read committed", "repeatable read"] {
        let mut sessions: Vec<_> = (0..8).map(|n| world.session(n % 4, level)).collect();
        let [ahead, behind] = sessions.get_disjoint_mut([0..4, 4..8]).expect("two halves");
        for (whose, one, two, expected, people) in QUEUES {
            let by = |words: &str| words[..1].parse::<usize>().expect("a user");
            let (first, second) = (&one[2..], &two[2..]);
            let (one, two) = (by(one), by(two));
            for end in ["commit", "rollback"] {
                world.set(whose, &roles[..if *whose == "joined" { 3 } else { 2 }]);
                let before = world.people();
                let alone = world.words(second);
                behind[two].run("begin");
                let alone = call(&mut behind[two], &alone);
                behind[two].run("rollback");
                let (answer, other) = world.one_behind_the_other(
                    (&mut ahead[one], first),
                    (&mut behind[two], second),
                    end,
                );
                let found = format!("{answer} {other}");
                let case = format!("{level}, {end}: {one} {first}, {two} {second}: {found}");
                let now = world.people();
                match end {
                    // A snapshot that is older than what the first one has changed.
                    "commit" if level == "repeatable read" && other == "40001" => {
                        refused += 1;
                    }
                    "commit" => {
                        if found != *expected || now != *people {
                            wrong.push(format!("{case}, not {expected}; {now}, not {people}"));
                        }
                    }
                    // As if the first had never been.
                    _ => {
                        if answer != "true" || other != alone || alone != "true" && now != before {
                            wrong.push(format!("{case}, not {alone}; {before}, then {now}"));
                        }
                    }
                }
                if !people.is_empty() && !now.is_empty() && !world.has_a_manager() {
                    wrong.push(format!("{case}: nobody manages it"));
                }
            }
        }
    }
    println!("{refused} of {} calls refused in repeatable read", QUEUES.len());
    assert!(wrong.is_empty(), "{} wrong: {wrong:#?}", wrong.len());
}
