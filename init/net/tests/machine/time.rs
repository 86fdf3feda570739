//! Time synchronisation against servers in namespaces and against chrony, with a clock of the test: the
//! test does not touch the machine's clock. Needs root, iproute2 and chrony.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::lab::LinkNamespaces;
use alknet_init_net::{
    NetError,
    time::{AdjustableClock, TimeEvent, TimeHandle, TimeSources, TimeSync},
};
use alknet_test_support::deadline;
use tokio::{net::UdpSocket, sync::mpsc, time::timeout};

fn patience() -> Duration {
    deadline(Duration::from_secs(60))
}

/// A clock that is wrong by some nanoseconds.
#[derive(Clone, Debug, Default)]
struct WrongClock(Arc<Mutex<WrongClockState>>);

#[derive(Debug, Default)]
struct WrongClockState {
    error_ns: i64,
    stored: u32,
}

fn true_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    since.as_nanos() as i64
}

impl WrongClock {
    fn by(error_ns: i64) -> Self {
        let state = WrongClockState {
            error_ns,
            stored: 0,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    fn error_ns(&self) -> i64 {
        self.0.lock().expect("not poisoned").error_ns
    }
}

impl AdjustableClock for WrongClock {
    fn now_ns(&self) -> i64 {
        true_ns() + self.error_ns()
    }

    fn step(&mut self, offset_ns: i64) -> Result<(), NetError> {
        self.0.lock().expect("not poisoned").error_ns += offset_ns;
        Ok(())
    }

    fn slew(&mut self, offset_ns: i64) -> Result<(), NetError> {
        self.step(offset_ns)
    }

    fn store(&mut self) -> Result<(), NetError> {
        self.0.lock().expect("not poisoned").stored += 1;
        Ok(())
    }
}

fn start(clock: &WrongClock, servers: &[String]) -> (TimeHandle, mpsc::Receiver<TimeEvent>) {
    let (events, news) = mpsc::channel(16);
    let sources = TimeSources {
        servers: servers.to_vec(),
        resolvers: Vec::new(),
    };
    let built = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    (
        TimeSync::start_with(clock.clone(), sources, built, events),
        news,
    )
}

async fn next(news: &mut mpsc::Receiver<TimeEvent>) -> TimeEvent {
    let heard = timeout(patience(), news.recv()).await;
    heard.expect("told in time").expect("the task runs")
}

/// Answers requests with what `change` makes of a right answer.
async fn serve(change: fn(&mut [u8; 48])) -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let address = socket.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        let mut question = [0; 48];
        while let Ok((48, from)) = socket.recv_from(&mut question).await {
            let mut reply = [0; 48];
            reply[..2].copy_from_slice(&[0x24, 1]);
            reply[24..32].copy_from_slice(&question[40..]);
            let secs = (true_ns() / 1_000_000_000 + 2_208_988_800) as u32;
            let fraction = ((true_ns() % 1_000_000_000) << 32) / 1_000_000_000;
            for at in [32, 40] {
                reply[at..at + 4].copy_from_slice(&secs.to_be_bytes());
                reply[at + 4..at + 8].copy_from_slice(&(fraction as u32).to_be_bytes());
            }
            change(&mut reply);
            drop(socket.send_to(&reply, from).await);
        }
    });
    address
}

fn deny(reply: &mut [u8; 48]) {
    reply[1] = 0;
    reply[12..16].copy_from_slice(b"DENY");
}

const SECOND: i64 = 1_000_000_000;

#[tokio::test]
async fn a_clock_far_off_is_stepped_at_the_first_answer_and_stored() {
    let clock = WrongClock::by(-true_ns() + 77 * SECOND);
    let server = serve(|_| {}).await;
    let (_time_sync, mut news) = start(&clock, std::slice::from_ref(&server));
    assert!(matches!(next(&mut news).await, TimeEvent::Stepped { .. }));
    let synced = next(&mut news).await;
    assert!(
        matches!(&synced, TimeEvent::Synced { server: s, .. } if *s == server),
        "{synced:?}"
    );
    assert!(clock.error_ns().abs() < 2 * SECOND, "{}", clock.error_ns());
    assert_eq!(clock.0.lock().expect("not poisoned").stored, 1);
}

#[tokio::test]
async fn a_clock_nearly_right_is_not_stepped() {
    let clock = WrongClock::by(SECOND / 10);
    let server = serve(|_| {}).await;
    let (_time_sync, mut news) = start(&clock, &[server]);
    assert!(matches!(next(&mut news).await, TimeEvent::Synced { .. }));
}

#[tokio::test]
async fn liars_are_passed_over_until_an_honest_server_is_found() {
    let clock = WrongClock::by(-true_ns());
    let servers = [
        serve(|r| r[24] ^= 1).await,
        serve(|r| r[0] = 0xe4).await,
        serve(deny).await,
        serve(|r| r[32..48].fill(0xa0)).await,
        serve(|_| {}).await,
    ];
    let (_time_sync, mut news) = start(&clock, &servers);
    assert!(matches!(next(&mut news).await, TimeEvent::Stepped { .. }));
    let synced = next(&mut news).await;
    assert!(matches!(&synced, TimeEvent::Synced { server, .. } if *server == servers[4]));
}

#[tokio::test]
async fn without_an_honest_server_it_says_so_and_takes_a_new_one_at_once() {
    let clock = WrongClock::by(-true_ns());
    let liar = serve(|r| r[24] ^= 1).await;
    let (time_sync, mut news) = start(&clock, &[liar, "no.such.name".to_owned()]);
    let failed = next(&mut news).await;
    assert!(matches!(&failed, TimeEvent::Failed { reason } if reason.contains("name server")));
    assert!(clock.error_ns() < -SECOND, "untouched");
    let sources = TimeSources {
        servers: vec![serve(|_| {}).await],
        resolvers: Vec::new(),
    };
    time_sync.update(sources);
    while !matches!(next(&mut news).await, TimeEvent::Synced { .. }) {}
}

#[test]
fn chrony_is_understood() {
    LinkNamespaces::run(async |mut lab| {
        lab.cable(0, &["10.9.0.1/24"]);
        lab.show(&["link", "set", "eth0", "up"]);
        lab.show(&["addr", "add", "10.9.0.2/24", "dev", "eth0"]);
        let config = lab.dir.path().join("chrony.conf");
        let text = format!(
            "local stratum 5\nallow all\ncmdport 0\nbindcmdaddress /\npidfile {0}/chrony.pid\ndriftfile {0}/drift\n",
            lab.dir.path().display()
        );
        std::fs::write(&config, text).expect("written");
        // -x: chronyd serves the time and leaves the clock alone.
        let chronyd = std::env::var("ALKNET_TEST_CHRONYD")
            .expect("cargo xtask test gets chronyd and names it in ALKNET_TEST_CHRONYD");
        lab.spawn(
            &chronyd,
            &["-x", "-d", "-u", "root", "-f", &config.to_string_lossy()],
        );
        let clock = WrongClock::by(-3600 * SECOND);
        let (_time_sync, mut news) = start(&clock, &["10.9.0.1".to_owned()]);
        while !matches!(next(&mut news).await, TimeEvent::Synced { .. }) {}
        assert!(clock.error_ns().abs() < 2 * SECOND, "{}", clock.error_ns());
    });
}
