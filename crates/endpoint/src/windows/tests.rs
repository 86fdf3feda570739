use std::cell::Cell;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::limits::EndpointLimits;

const MIB: usize = 1 << 20;
const FIRST: usize = WINDOW_BYTES_FIRST as usize;
const START: usize = WINDOW_BYTES_START as usize;

/// A path on which a round trip takes a tenth of a second.
const LONG: Option<Duration> = Some(Duration::from_millis(100));

fn peer(name: &str) -> PeerId {
    name.parse().expect("a peer id")
}

/// The windows of a machine with so much memory, in MiB.
fn windows(memory: u64) -> Arc<ReceiveWindows> {
    let limits = EndpointLimits::for_memory(memory << 20);
    Arc::new(ReceiveWindows::new(limits.window_bytes))
}

/// A connection from here, and the size of the window that its peer last heard.
struct WindowTestConnection {
    window: ReceiveWindow,
    announced: Cell<usize>,
    now: Cell<Instant>,
}

impl WindowTestConnection {
    fn from(windows: &Arc<ReceiveWindows>, from: IpAddr) -> Self {
        let (window, now) = (ReceiveWindow::default(), Instant::now());
        window.begin(windows, from, now);
        Self {
            window,
            announced: Cell::new(FIRST),
            now: Cell::new(now),
        }
    }

    fn for_peer(windows: &Arc<ReceiveWindows>, who: &str) -> Self {
        let connected = Self::from(windows, Ipv4Addr::new(192, 0, 2, 1).into());
        connected.identify(who);
        connected.allow(StreamBudget::CALL);
        connected
    }

    fn set(&self) -> impl Fn(u32) {
        move |bytes| {
            let bytes = bytes as usize;
            let before = self.announced.replace(bytes);
            assert!(before < bytes, "a window shrinks: {before} {bytes}");
        }
    }

    fn identify(&self, who: &str) {
        self.window.identify(&peer(who), self.set());
    }

    fn allow(&self, budget: StreamBudget) {
        let most = budget.connection_window_bytes;
        self.window.allow(most, self.set());
    }

    /// So many bytes are read, in this time, as pieces.
    fn reads(&self, bytes: usize, time: Duration) {
        const PIECES: usize = 16;
        for _ in 0..PIECES {
            let now = self.now.get() + time / PIECES as u32;
            self.now.set(now);
            if self.window.is_due(bytes / PIECES) {
                self.window.check(now, LONG, self.set());
            }
        }
    }

    /// Whole windows are read, each in a round trip, until none grows any more.
    fn grows(&self) -> usize {
        for _ in 0..16 {
            self.reads(self.announced.get(), LONG.expect("a time"));
        }
        self.announced.get()
    }
}

#[test]
fn a_window_grows_with_what_is_read_and_no_further_than_it_may() {
    let windows = windows(512);
    let ada = WindowTestConnection::for_peer(&windows, "ada");
    assert_eq!(ada.announced.get(), START);
    // One window in two seconds, and then one in a round trip and a half.
    ada.reads(4 * START, Duration::from_secs(8));
    assert_eq!(ada.announced.get(), START);
    ada.reads(START, Duration::from_millis(150));
    assert_eq!(ada.announced.get(), 2 * START);
    let most = StreamBudget::CALL.connection_window_bytes as usize;
    assert_eq!(ada.grows(), most);
    // A second one, and others beside it.
    assert_eq!(
        WindowTestConnection::for_peer(&windows, "ada").grows(),
        most
    );
    assert_eq!(
        WindowTestConnection::for_peer(&windows, "eve").grows(),
        most
    );
    // A browser, which shows a token later.
    let http = WindowTestConnection::from(&windows, Ipv4Addr::LOCALHOST.into());
    http.reads(64 * MIB, Duration::from_secs(1));
    assert_eq!(http.announced.get(), 4 * FIRST);
    http.allow(StreamBudget::AUTHENTICATED);
    http.identify("bob");
    assert_eq!(http.announced.get(), START);
    drop((ada, http));
    assert_eq!(windows.used(), (0, 0));
}

/// A token of the least scope, with as many connections as it may have. Each was read from fast, and is not any more.
#[test]
fn one_peer_has_half_and_two_leave_others_room() {
    let windows = windows(512);
    let of = |who: &str, count| {
        let all = (0..count).map(|_| {
            let connected = WindowTestConnection::for_peer(&windows, who);
            connected.grows();
            connected
        });
        all.collect::<Vec<_>>()
    };
    let announced =
        |all: &[WindowTestConnection]| all.iter().map(|one| one.announced.get()).sum::<usize>();
    let eve = of("eve", 64);
    assert!(
        announced(&eve) <= 32 * MIB + 64 * FIRST,
        "{}",
        announced(&eve)
    );
    let mallory = of("mallory", 64);
    let both = announced(&eve) + announced(&mallory);
    // Of the last quarter a thirty-second each at most.
    assert!(both <= 49 * MIB + 128 * FIRST, "{both}");
    let many: Vec<_> = (0..100).map(|n| of(&format!("many-{n}"), 1)).collect();
    let ada = of("ada", 1);
    assert!(
        ada[0].announced.get() > FIRST,
        "one that has little finds room"
    );
    drop(eve);
    assert_eq!(of("ada", 1)[0].announced.get(), 16 * MIB);
    drop((mallory, many, ada));
    assert_eq!(windows.used(), (0, 0));
}

/// Workers of a hub, which say something now and then.
#[test]
fn connections_that_say_nothing_leave_room_for_one_that_needs_a_large_window() {
    for memory in [512, 2048] {
        let windows = windows(memory);
        let idle: Vec<_> = (0..1000)
            .map(|n| WindowTestConnection::for_peer(&windows, &format!("worker-{}", n / 4)))
            .collect();
        let all = windows.used().0;
        assert!(all <= windows_of(memory) / 2, "{all}");
        let ada = WindowTestConnection::for_peer(&windows, "ada");
        assert!(ada.grows() >= 8 * MIB, "{memory}: {}", ada.announced.get());
        drop(idle);
        assert_eq!(ada.grows(), 16 * MIB);
    }
    // And those of one peer.
    let windows = windows(512);
    let idle: Vec<_> = (0..16)
        .map(|_| WindowTestConnection::for_peer(&windows, "ada"))
        .collect();
    assert_eq!(
        WindowTestConnection::for_peer(&windows, "ada").grows(),
        16 * MIB
    );
    drop(idle);
}

fn windows_of(memory: u64) -> usize {
    EndpointLimits::for_memory(memory << 20).window_bytes
}

#[test]
fn unknown_peers_have_a_quarter_one_network_and_one_site_a_part_of_it() {
    let windows = windows(512);
    let crowd = |addresses: &mut dyn Iterator<Item = IpAddr>| {
        let all = addresses.flat_map(|from| (0..64).map(move |_| from));
        let all = all.map(|from| {
            let one = WindowTestConnection::from(&windows, from);
            one.grows();
            one
        });
        let all: Vec<_> = all.collect();
        let extra = all
            .iter()
            .map(|one| one.announced.get() - FIRST)
            .sum::<usize>();
        (extra, all)
    };
    let v4 = |n: u8| -> IpAddr { Ipv4Addr::new(198, 51, n, 1).into() };
    let (one, held) = crowd(&mut [v4(1), v4(1)].into_iter());
    assert_eq!(one, 4 * MIB);
    let v6 = |n: u16| -> IpAddr { Ipv6Addr::new(0x2001, 0xdb8, 0, n << 8, 0, 0, 0, 1).into() };
    let (site, held_too) = crowd(&mut (0..8).map(v6));
    assert_eq!(site, 8 * MIB);
    let (rest, all) = crowd(&mut (2..10).map(v4));
    assert_eq!(one + site + rest, 16 * MIB);
    assert_eq!(
        WindowTestConnection::for_peer(&windows, "ada").grows(),
        16 * MIB
    );
    // What they have goes with them once they are known.
    assert!(all.iter().any(|one| one.announced.get() > FIRST));
    for one in &all {
        one.identify("eve");
    }
    assert_eq!(windows.used().0, one + site + rest);
    drop((held, held_too, all));
    assert_eq!(windows.used(), (0, 0));
}

/// The bounds are those of docs/endpoint.md.
#[test]
fn windows_follow_the_memory_of_the_machine() {
    for (memory, expected) in [(16, 4), (128, 16), (512, 64), (2048, 256), (65_536, 256)] {
        assert_eq!(windows_of(memory), expected * MIB, "{memory}");
    }
}

/// A session keeps the window as well.
#[test]
fn a_window_counts_until_its_last_holder_drops_it() {
    struct NullWindowControl;
    impl WindowControl for NullWindowControl {
        fn set_window(&self, _bytes: u32) {}
        fn rtt(&self) -> Option<Duration> {
            None
        }
    }
    let windows = windows(512);
    let session: Arc<ReceiveWindow> = Arc::default();
    let credit = WindowCredit::new(Arc::clone(&session), Box::new(NullWindowControl));
    credit.allow(1 << 24);
    assert_eq!(windows.used(), (0, 0), "it has not begun");
    credit.begin(&windows, Ipv4Addr::LOCALHOST.into());
    credit.identify(&peer("ada"));
    credit.allow(1 << 24);
    drop(credit);
    assert_eq!(windows.used(), (START - FIRST, 1));
    drop(session);
    assert_eq!(windows.used(), (0, 0));
}
