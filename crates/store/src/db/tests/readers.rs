//! The readers, which identities share.

use alknet_test_support::deadline;

use super::*;

/// The attack: all that one client asks for takes as long as it may.
#[test]
fn long_reads_of_an_identity_leave_readers_to_others() {
    let limit = deadline(Duration::from_secs(60));
    let (_dir, path) = scratch();
    let db = open(&path);
    let (begun, has_begun) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let may_go_on = Arc::new(Mutex::new(may_go_on));
    let ada = db.reading_as("ada");
    let long = (0..2 * READERS).map(|_| {
        let (begun, may_go_on) = (begun.clone(), Arc::clone(&may_go_on));
        ada.read(move |_| {
            begun.send(()).ok();
            // It ends with the sender.
            may_go_on.lock().expect("no panic").recv().ok();
            Ok(())
        })
    });
    let long: Vec<_> = long.collect();
    for _ in 0..2 {
        has_begun.recv_timeout(limit).expect("a read begins");
    }
    let (done, is_done) = mpsc::channel();
    let short = db.reading_as("bob").read(move |_| {
        done.send(()).ok();
        Ok(())
    });
    is_done.recv_timeout(limit).expect("a reader is left");
    assert_eq!(short.wait(), Ok(()));
    assert!(has_begun.try_recv().is_err(), "a third long read began");
    drop(go_on);
    for reply in long {
        assert_eq!(reply.wait(), Ok(()));
    }
}
