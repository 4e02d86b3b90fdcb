use std::error::Error as _;
use std::sync::mpsc;
use std::thread;

use ecdsa::der;
use p256::NistP256;
use signature::{Signer, Verifier};

use super::*;
use crate::fault::{Act, Chip, PATIENCE, gate, options};
use crate::hsm::{Hsm, Signature};

/// What `hsm.sign` does, in two steps.
fn submit(hsm: &Hsm) -> Result<Ticket<Signature>, Error> {
    hsm.worker()
        .submit(Operation::Sign, |session| session.sign(&[7; 32]))
}

fn assert_valid(hsm: &Hsm, message: &[u8], signature: &Signature) {
    hsm.public_key()
        .verify(message, signature)
        .expect("a signature that verifies");
}

#[test]
fn a_transient_failure_reopens_and_retries_once() {
    let (chip, closed) = Chip::new();
    let hsm = chip.open();
    chip.on_calls([Act::Fail(Class::Transient)]);

    assert_valid(&hsm, b"m", &hsm.sign(b"m").unwrap());

    closed
        .try_recv()
        .expect("the failed connection was closed before the retry");
    assert_eq!(chip.opened(), 2);
    let counters = hsm.counters();
    assert_eq!((counters.signatures, counters.transient_failures), (1, 1));
    assert_eq!((counters.retries, counters.reopens), (1, 1));
    assert_eq!(counters.sign_latency.count(), 1);
    assert!(matches!(hsm.state(), State::Ready));
}

#[test]
fn the_second_failure_of_a_call_is_its_answer_and_the_next_call_works() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    chip.on_calls([Act::Fail(Class::Transient), Act::Fail(Class::Transient)]);

    let error = hsm.sign(b"m").unwrap_err();
    assert!(
        matches!(
            error,
            Error::Library {
                code: -1,
                class: Class::Transient,
                ..
            }
        ),
        "{error}"
    );
    assert_valid(&hsm, b"n", &hsm.sign(b"n").unwrap());

    let counters = hsm.counters();
    assert_eq!((counters.signatures, counters.transient_failures), (1, 2));
    assert_eq!((counters.retries, counters.reopens), (1, 2));
}

#[test]
fn every_kind_of_call_is_retried() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    chip.on_calls([Act::Fail(Class::Transient)]);
    assert_eq!(hsm.lock(b"secret").unwrap(), b"secret");
    chip.on_calls([Act::Fail(Class::Transient)]);
    assert_eq!(*hsm.unlock(b"secret").unwrap(), b"secret");
    chip.on_calls([Act::Fail(Class::Transient)]);
    assert_eq!(hsm.random(3).unwrap().len(), 3);
    assert_eq!(hsm.counters().retries, 3);
    assert_eq!(hsm.counters().signatures, 0);
}

#[test]
fn fewer_random_bytes_than_asked_for_never_leave() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    chip.on_calls([Act::Corrupt(0)]);
    assert_eq!(hsm.random(3).unwrap().len(), 3);
    chip.on_calls([Act::Corrupt(0), Act::Corrupt(0)]);
    let error = hsm.random(3).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Library {
                function: "random",
                code: 2,
                class: Class::Transient,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(hsm.counters().retries, 2);
}

#[test]
fn openings_that_fail_are_repeated_while_the_call_waits() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    chip.on_calls([Act::Fail(Class::Transient)]);
    chip.on_openings([Act::Fail(Class::Transient), Act::Fail(Class::Transient)]);

    assert_valid(&hsm, b"m", &hsm.sign(b"m").unwrap());

    let counters = hsm.counters();
    assert_eq!(
        (
            counters.transient_failures,
            counters.reopens,
            counters.retries
        ),
        (3, 1, 1)
    );
    assert_eq!(chip.opened(), 2);
}

#[test]
fn it_reopens_without_being_called() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    let (gate, held) = gate();
    chip.on_calls([Act::Fail(Class::Transient), Act::Fail(Class::Transient)]);
    chip.on_openings([Act::Work, Act::Hang(gate)]);
    hsm.sign(b"m").unwrap_err();

    held.entered();
    let State::Reopening {
        failures: 2,
        retry_at,
        cause,
    } = hsm.state()
    else {
        panic!("{:?}", hsm.state());
    };
    assert!(retry_at <= Instant::now());
    assert!(matches!(cause, Error::Library { .. }));
    held.release();
}

#[test]
fn a_fatal_failure_is_the_answer_to_everything() {
    let (chip, closed) = Chip::new();
    let hsm = chip.open();
    chip.on_calls([Act::Fail(Class::Fatal)]);

    for _ in 0..3 {
        let error = hsm.sign(b"m").unwrap_err();
        assert!(
            matches!(
                error,
                Error::Library {
                    class: Class::Fatal,
                    ..
                }
            ),
            "{error}"
        );
    }

    closed
        .recv_timeout(PATIENCE)
        .expect("the connection is closed");
    assert_eq!(chip.opened(), 1);
    assert!(matches!(
        hsm.state(),
        State::Failed {
            cause: Error::Library { .. }
        }
    ));
    assert_eq!(hsm.counters().fatal_failures, 1);
    assert_eq!(hsm.counters().retries, 0);
}

#[test]
fn a_fatal_failure_to_reopen_is_never_repeated() {
    // as a wrong PIN is: a token locks itself after three
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    chip.on_calls([Act::Fail(Class::Transient)]);
    chip.on_openings([Act::Fail(Class::Fatal), Act::Work]);

    let error = hsm.sign(b"m").unwrap_err();
    assert!(matches!(
        error,
        Error::Library {
            function: "open",
            class: Class::Fatal,
            ..
        }
    ));
    assert!(matches!(hsm.state(), State::Failed { .. }));
    assert_eq!(chip.opened(), 1);
}

#[test]
fn a_logic_failure_closes_nothing() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    chip.on_calls([Act::Fail(Class::Logic)]);

    assert!(matches!(
        hsm.sign(b"m"),
        Err(Error::Library {
            class: Class::Logic,
            ..
        })
    ));
    assert_valid(&hsm, b"m", &hsm.sign(b"m").unwrap());

    assert_eq!(chip.opened(), 1);
    let counters = hsm.counters();
    assert_eq!((counters.logic_failures, counters.retries), (1, 0));
}

#[test]
fn a_corrupt_signature_never_leaves() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();

    chip.on_calls([Act::Corrupt(300)]);
    assert_valid(&hsm, b"m", &hsm.sign(b"m").unwrap());

    chip.on_calls([Act::Corrupt(0), Act::Corrupt(511)]);
    let error = hsm.sign(b"m").unwrap_err();
    assert!(matches!(error, Error::BadSignature { .. }), "{error}");
    assert!(error.to_string().contains("zymkey:slot=0"));

    let counters = hsm.counters();
    assert_eq!((counters.bad_signatures, counters.signatures), (3, 1));
}

#[test]
fn another_key_after_reopening_signs_nothing() {
    let (chip, closed) = Chip::new();
    let hsm = chip.open();
    let before = *hsm.public_key();
    chip.on_calls([Act::Fail(Class::Transient)]);
    chip.on_openings([Act::NewKey]);

    for _ in 0..2 {
        let error = hsm.sign(b"m").unwrap_err();
        let Error::KeyChanged {
            expected, found, ..
        } = error
        else {
            panic!("{error}")
        };
        assert_ne!(expected, found);
        assert_eq!(expected, crate::hsm::key_id(hsm.spki()));
    }

    assert_eq!(*hsm.public_key(), before);
    assert!(matches!(
        hsm.state(),
        State::Failed {
            cause: Error::KeyChanged { .. }
        }
    ));
    assert_eq!(hsm.counters().signatures, 0);
    for _ in 0..2 {
        closed
            .recv_timeout(PATIENCE)
            .expect("both connections are closed");
    }
}

#[test]
fn a_stuck_call_makes_all_others_fail_fast_until_it_returns() {
    let (chip, _closed) = Chip::new();
    let mut options = options();
    options.queue = 2;
    let hsm = chip.try_open(options).unwrap();
    let (gate, held) = gate();
    let (second_gate, second) = crate::fault::gate();
    chip.on_calls([Act::Hang(gate), Act::Hang(second_gate)]);
    let (freed, was_freed) = mpsc::channel();
    let stuck = hsm
        .worker()
        .submit(Operation::Sign, move |session| {
            session.sign(&[7; 32])?;
            Ok(TellsItsEnd(freed.clone()))
        })
        .unwrap();
    held.entered();
    let before_it_was_clear = submit(&hsm).unwrap();
    let left_alone = submit(&hsm).unwrap();
    hsm.worker().set_deadline(Duration::ZERO);

    assert!(matches!(
        hsm.state(),
        State::Wedged {
            operation: Operation::Sign,
            ..
        }
    ));
    // the queue is full, but that isn't the trouble
    let error = hsm.sign(b"m").unwrap_err();
    assert!(matches!(error, Error::Wedged { .. }), "{error}");
    assert_eq!(error.class(), Class::Transient);
    let error = stuck.wait().err().unwrap();
    assert!(
        matches!(
            error,
            Error::TimedOut {
                operation: Operation::Sign,
                ..
            }
        ),
        "{error}"
    );
    let error = before_it_was_clear.wait().unwrap_err();
    assert!(
        matches!(
            error,
            Error::Wedged {
                operation: Operation::Sign,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!((hsm.counters().timeouts, hsm.counters().busy), (1, 0));

    hsm.worker().set_deadline(PATIENCE);
    held.release();
    was_freed
        .recv_timeout(PATIENCE)
        .expect("the late result is freed");
    second.entered();
    // the next call is in: the late one is over, and was no failure
    assert!(matches!(hsm.state(), State::Ready));
    second.release();
    left_alone.wait().unwrap();
    let counters = hsm.counters();
    assert_eq!((counters.late_results, counters.reopens), (1, 0));
    assert_eq!(
        chip.opened(),
        1,
        "no second connection beside the stuck one"
    );
}

#[test]
fn a_late_failure_reopens_but_is_not_retried() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    let (gate, held) = gate();
    chip.on_calls([Act::Hang(gate)]);
    let mut runs = 0;
    let (ran, has_run) = mpsc::channel();
    let stuck = hsm
        .worker()
        .submit::<Signature>(Operation::Sign, move |session| {
            runs += 1;
            ran.send(runs).unwrap();
            session.sign(&[7; 32])?;
            Err(Error::Library {
                function: "late",
                code: -5,
                hsm: "zymkey:slot=0".into(),
                meaning: "EIO",
                next: "nothing is to be done",
                class: Class::Transient,
            })
        })
        .unwrap();
    held.entered();
    hsm.worker().set_deadline(Duration::ZERO);
    stuck.wait().unwrap_err();
    hsm.worker().set_deadline(PATIENCE);
    held.release();

    assert_valid(&hsm, b"m", &hsm.sign(b"m").unwrap());
    assert_eq!(has_run.try_iter().collect::<Vec<_>>(), [1]);
    let counters = hsm.counters();
    assert_eq!(
        (counters.late_results, counters.retries, counters.reopens),
        (1, 0, 1)
    );
}

#[test]
fn reopening_can_get_stuck_too() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    let (gate, held) = gate();
    chip.on_calls([Act::Fail(Class::Transient)]);
    chip.on_openings([Act::Hang(gate)]);
    let waiting = submit(&hsm).unwrap();
    held.entered();
    hsm.worker().set_deadline(Duration::ZERO);

    assert!(matches!(
        hsm.state(),
        State::Wedged {
            operation: Operation::Open,
            ..
        }
    ));
    let error = waiting.wait().unwrap_err();
    assert!(
        matches!(
            error,
            Error::Wedged {
                operation: Operation::Open,
                ..
            }
        ),
        "{error}"
    );

    hsm.worker().set_deadline(PATIENCE);
    held.release();
    assert_valid(&hsm, b"m", &hsm.sign(b"m").unwrap());
}

#[test]
fn a_full_queue_answers_at_once() {
    let (chip, _closed) = Chip::new();
    let mut options = options();
    options.queue = 2;
    let hsm = chip.try_open(options).unwrap();
    let (gate, held) = gate();
    chip.on_calls([Act::Hang(gate)]);
    let inside = submit(&hsm).unwrap();
    held.entered();
    let waiting = [submit(&hsm).unwrap(), submit(&hsm).unwrap()];

    let error = hsm.sign(b"m").unwrap_err();
    assert!(matches!(error, Error::Busy { waiting: 2 }), "{error}");

    held.release();
    inside.wait().unwrap();
    for ticket in waiting {
        ticket.wait().unwrap();
    }
    assert_eq!((hsm.counters().busy, hsm.counters().signatures), (1, 3));
}

#[test]
fn a_call_whose_time_passes_in_the_queue_never_reaches_the_chip() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    let (gate, held) = gate();
    chip.on_calls([Act::Hang(gate)]);
    let inside = submit(&hsm).unwrap();
    held.entered();
    let mut late = submit(&hsm).unwrap();
    late.deadline = Instant::now();

    let error = late.wait().unwrap_err();
    assert!(matches!(error, Error::Busy { waiting: 0 }), "{error}");
    assert!(matches!(hsm.state(), State::Ready), "busy is not stuck");

    held.release();
    inside.wait().unwrap();
    hsm.sign(b"m").unwrap();
    let counters = hsm.counters();
    assert_eq!(
        (counters.busy, counters.timeouts, counters.signatures),
        (1, 0, 2)
    );
}

#[test]
fn while_closed_for_long_only_patient_calls_wait() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    let (gate, held) = gate();
    chip.on_calls([Act::Hang(gate)]);
    let inside = submit(&hsm).unwrap();
    held.entered();
    let mut impatient = submit(&hsm).unwrap();
    let patient = submit(&hsm).unwrap();
    {
        let mut desk = hsm.worker().shared.lock();
        let short = Instant::now() + Duration::from_secs(1);
        desk.queue[0].deadline = short;
        impatient.deadline = short;
        desk.close(10, Error::UnlockRefused);
        assert_eq!(desk.queue.len(), 1);
    }
    let error = impatient.wait().unwrap_err();
    let Error::Unavailable { source, .. } = error else {
        panic!("{error}")
    };
    assert!(matches!(*source, Error::UnlockRefused));

    held.release();
    inside.wait().unwrap();
    hsm.worker().set_deadline(Duration::from_secs(1));
    // turned away at the door, not after a second
    let error = submit(&hsm).err().unwrap();
    let Error::Unavailable { retry_in, .. } = error else {
        panic!("{error}")
    };
    assert!(retry_in > Duration::from_secs(1) && retry_in <= Duration::from_millis(25_600));
    assert!(matches!(hsm.state(), State::Reopening { failures: 10, .. }));
    drop(patient);
}

#[test]
fn pauses_double_up_to_a_limit() {
    let pauses: Vec<_> = [1, 2, 3, 10, 11, 1000, u32::MAX].map(pause).to_vec();
    let expected = [50, 100, 200, 25_600, 30_000, 30_000, 30_000];
    assert_eq!(pauses, expected.map(Duration::from_millis));
}

#[test]
fn a_success_ends_the_row_of_failures() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    for _ in 0..3 {
        chip.on_calls([Act::Fail(Class::Transient)]);
        hsm.sign(b"m").unwrap();
    }
    let (gate, held) = gate();
    chip.on_calls([Act::Fail(Class::Transient)]);
    chip.on_openings([Act::Hang(gate)]);
    let waiting = submit(&hsm).unwrap();
    held.entered();
    assert!(
        matches!(hsm.state(), State::Reopening { failures: 1, .. }),
        "{:?}",
        hsm.state()
    );
    held.release();
    waiting.wait().unwrap();
}

#[test]
fn a_defect_in_a_backend_is_an_error_and_no_hang() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    let (gate, held) = gate();
    chip.on_calls([Act::Hang(gate), Act::Panic]);
    let first = submit(&hsm).unwrap();
    held.entered();
    let broken = submit(&hsm).unwrap();
    let queued = submit(&hsm).unwrap();
    held.release();

    first.wait().unwrap();
    assert!(matches!(broken.wait(), Err(Error::WorkerDied)));
    assert!(matches!(queued.wait(), Err(Error::WorkerDied)));
    assert!(matches!(hsm.sign(b"m"), Err(Error::WorkerDied)));
    assert!(matches!(
        hsm.state(),
        State::Failed {
            cause: Error::WorkerDied
        }
    ));
}

#[test]
fn a_failure_to_open_is_reported_as_it_is() {
    let (chip, _closed) = Chip::new();
    chip.on_openings([Act::Fail(Class::Transient)]);
    let error = chip.try_open(options()).unwrap_err();
    assert!(matches!(
        error,
        Error::Library {
            function: "open",
            class: Class::Transient,
            ..
        }
    ));

    chip.on_openings([Act::Panic]);
    assert!(matches!(chip.try_open(options()), Err(Error::WorkerDied)));
}

#[test]
fn an_opening_that_hangs_is_given_up_and_closed_when_it_returns() {
    let (chip, closed) = Chip::new();
    let (gate, held) = gate();
    chip.on_openings([Act::Hang(gate)]);
    let mut options = options();
    options.deadline = Duration::from_millis(1);
    let error = chip.try_open(options).unwrap_err();
    assert!(
        matches!(
            error,
            Error::TimedOut {
                operation: Operation::Open,
                ..
            }
        ),
        "{error}"
    );

    held.entered();
    held.release();
    closed
        .recv_timeout(PATIENCE)
        .expect("what was opened too late is closed");
}

#[test]
fn the_last_handle_closes_the_chip() {
    let (chip, closed) = Chip::new();
    let hsm = chip.open();
    let other = hsm.clone();
    drop(hsm);
    other.sign(b"m").unwrap();
    assert!(closed.try_recv().is_err());
    drop(other);
    // at once: the program may end just now, and take the library with it
    closed.try_recv().expect("the connection is closed");
}

#[test]
fn threads_share_one_chip() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    thread::scope(|scope| {
        for thread in 0..8_u8 {
            let hsm = hsm.clone();
            scope.spawn(move || {
                for message in 0..20_u8 {
                    let message = [thread, message];
                    assert_valid(&hsm, &message, &hsm.sign(&message).unwrap());
                }
            });
        }
    });
    assert_eq!((hsm.counters().signatures, chip.opened()), (160, 1));
}

#[test]
fn typed_errors_ride_in_signature_errors() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    chip.on_calls([Act::Fail(Class::Fatal)]);
    let error = Signer::<Signature>::try_sign(&hsm, b"m").unwrap_err();
    let inside = error.source().unwrap().downcast_ref::<Error>();
    assert!(
        matches!(inside, Some(Error::Library { code: -1, .. })),
        "{inside:?}"
    );
    let error = Signer::<der::Signature<NistP256>>::try_sign(&hsm, b"m").unwrap_err();
    assert!(error.source().unwrap().is::<Error>());
}

#[test]
fn any_deadline_and_any_queue_are_possible() {
    let (chip, _closed) = Chip::new();
    let mut options = options();
    options.deadline = Duration::MAX;
    options.queue = 0;
    let hsm = chip.try_open(options).unwrap();
    let (gate, held) = gate();
    chip.on_calls([Act::Hang(gate)]);
    let inside = submit(&hsm).unwrap();
    held.entered();
    let waiting = submit(&hsm).unwrap();
    let error = hsm.sign(b"m").unwrap_err();
    assert!(matches!(error, Error::Busy { waiting: 1 }), "{error}");
    held.release();
    inside.wait().unwrap();
    waiting.wait().unwrap();
}

#[test]
fn what_other_handles_do_closes_nothing_here() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    let elsewhere = [
        Error::Busy { waiting: 3 },
        Error::Wedged {
            operation: Operation::Random,
            elapsed: PATIENCE,
        },
    ];
    for error in elsewhere {
        let text = error.to_string();
        let result: Result<(), _> = hsm
            .worker()
            .call(Operation::Sign, move |_| Err(error.clone()));
        assert_eq!(result.unwrap_err().to_string(), text);
        assert!(matches!(hsm.state(), State::Ready), "{text}");
    }
    assert_eq!((hsm.counters().retries, chip.opened()), (0, 1));
    // nor are they failures of this one
    let (gate, held) = gate();
    chip.on_calls([Act::Fail(Class::Transient)]);
    chip.on_openings([Act::Hang(gate)]);
    let waiting = submit(&hsm).unwrap();
    held.entered();
    let state = hsm.state();
    assert!(
        matches!(state, State::Reopening { failures: 1, .. }),
        "{state:?}"
    );
    held.release();
    waiting.wait().unwrap();
}

#[test]
fn a_refusal_to_be_opened_again_is_for_good() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    chip.on_calls([Act::Fail(Class::Transient)]);
    chip.on_openings([Act::Fail(Class::Logic), Act::Work]);
    for _ in 0..2 {
        let error = hsm.sign(b"m").unwrap_err();
        assert_eq!(error.class(), Class::Logic, "{error}");
    }
    assert!(matches!(hsm.state(), State::Failed { .. }));
    assert_eq!(chip.opened(), 1);
}

#[test]
fn a_call_without_time_for_a_retry_is_answered_by_its_failure() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    chip.on_calls((0..5).map(|_| Act::Fail(Class::Transient)));
    for _ in 0..2 {
        hsm.sign(b"m").unwrap_err();
    }
    let start = Instant::now();
    while !matches!(hsm.state(), State::Ready) {
        assert!(start.elapsed() < PATIENCE, "it isn't opened again");
        thread::yield_now();
    }
    // the next pause is 800 ms
    hsm.worker().set_deadline(Duration::from_millis(700));
    let error = hsm.sign(b"m").unwrap_err();
    assert!(matches!(error, Error::Library { .. }), "{error}");
    assert_eq!(hsm.counters().retries, 2);
}

#[test]
fn messages_about_time_are_short_and_say_what_to_do() {
    let after = Duration::from_nanos(10_000_073_291);
    let late = |operation| Error::TimedOut { operation, after }.to_string();
    let operation = Operation::Sign;
    let text = late(operation);
    assert!(
        text.starts_with("sign got no answer from the HSM within 10.0s; "),
        "{text}"
    );
    assert!(text.ends_with("its daemon runs"), "{text}");
    // nobody makes two keys by trying again
    let text = late(Operation::Generate);
    assert!(text.contains("`zk-ctl hsm keys list`"), "{text}");
    let stuck = Error::Wedged {
        operation,
        elapsed: after,
    };
    let stuck = stuck.to_string();
    assert!(stuck.contains("in it for 10.0s. If"), "{stuck}");
    for (retry_in, when) in [
        (Duration::ZERO, "opened again now"),
        (Duration::from_micros(49_991), "opened again in 50.0ms"),
    ] {
        let source = Box::new(Error::UnlockRefused);
        let closed = Error::Unavailable { retry_in, source }.to_string();
        assert!(closed.ends_with(when), "{closed}");
    }
}

struct TellsItsEnd(Sender<()>);

impl Drop for TellsItsEnd {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}
