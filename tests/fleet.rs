//! A fleet: three daemons, each in a network namespace of its own, before one cluster
//! of three targets (the stand-in of `tests/common/ais`) before one bucket. The
//! namespaces are joined by nothing but the one in which the cluster is.

mod common;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::Warmfs;
use common::ais::{Cluster, ClusterOptions, Fault, Kind, S3Origin, Trouble};
use common::epoch::Objects;
use common::machine::{is_root, skip};
use common::namespace::{in_namespace, ip};
use common::store::{BUCKET, Store};

/// Daemons.
const NODES: usize = 3;

/// Readers of each.
const READERS: usize = 6;

/// Objects of a dataset, and what it is called.
const OBJECTS: usize = 400;
const PREFIX: &str = "train/";

/// Two epochs of three daemons, on two cores that others use too.
const LIMIT: Duration = Duration::from_secs(180);

/// Where the cluster is, seen from everywhere.
const HUB: &str = "10.77.0.1";

/// A network that is joined to the calling thread's by one line.
struct Node {
    namespace: File,
    warmfs: Warmfs,
    mount: PathBuf,
}

impl Node {
    fn new(number: usize) -> Node {
        let namespace = new_namespace();
        // The descriptor of this process, for `ip` to open.
        let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        ip(&format!("link add node{number} type veth peer name line netns {path}"));
        ip(&format!("addr add 10.77.{number}.1/24 dev node{number}"));
        ip(&format!("link set node{number} up"));
        let node = Node { namespace, warmfs: Warmfs::with_limit(LIMIT), mount: PathBuf::new() };
        for args in [
            "link set lo up".to_owned(),
            format!("addr add 10.77.{number}.2/24 dev line"),
            "link set line up".to_owned(),
            format!("route add {HUB} via 10.77.{number}.1"),
        ] {
            let mut command = Command::new("ip");
            command.args(args.split(' '));
            assert!(node.within(&mut command).status().unwrap().success(), "ip {args}");
        }
        node
    }

    /// The same command, to be run in this network.
    fn within<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let namespace = self.namespace.as_raw_fd();
        // SAFETY: one system call on a descriptor that is open as long as the node.
        unsafe {
            command.pre_exec(move || match libc::setns(namespace, libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            })
        }
    }

    /// Mounts the dataset.
    fn mount(&mut self, cluster: &Cluster, warm: &str) {
        self.mount = self.warmfs.path("mnt");
        let uri = format!("ais://@aws/{BUCKET}/{PREFIX}");
        let mut command = self.warmfs.command(&["mount", &uri, self.mount.to_str().unwrap()]);
        command.env("AIS_ENDPOINT", cluster.url()).env("WARMFS_WARM", warm);
        let output = self.within(&mut command).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // The daemon belongs to this test's watchdog from now on.
        self.warmfs.status();
    }

    /// The network that its daemon is in.
    fn network(&self) -> PathBuf {
        let daemon = self.warmfs.daemon().expect("a daemon runs");
        fs::read_link(format!("/proc/{daemon}/ns/net")).unwrap()
    }

    fn gets(&self) -> u64 {
        self.warmfs.status()["remote"]["get"]["requests"].as_u64().unwrap()
    }
}

/// A network of nobody's.
fn new_namespace() -> File {
    let thread = std::thread::spawn(|| {
        // SAFETY: takes a number only; the thread is new and ends here.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    thread.join().unwrap()
}

struct Fleet {
    nodes: Vec<Node>,
    cluster: Cluster,
    objects: Objects,
    // Gone last.
    store: Store,
}

/// Runs `test` with a fleet that fetches ahead as `warm` says, where that can be.
fn with_fleet(warm: &'static str, test: fn(Fleet)) {
    if !is_root() {
        skip("a fleet", "network namespaces need root");
        return;
    }
    in_namespace(move || {
        ip(&format!("addr add {HUB}/32 dev lo"));
        let store = Store::start();
        let objects = Objects::put(&store, PREFIX, OBJECTS, 16 << 10..256 << 10);
        let origin = Some(("aws".to_owned(), Arc::new(S3Origin::new(&store.url())) as _));
        let ip = HUB.parse().unwrap();
        let cluster = Cluster::start(3, ClusterOptions { ip, origin, ..Default::default() });
        let mut nodes: Vec<_> = (1..=NODES).map(Node::new).collect();
        nodes.iter_mut().for_each(|node| node.mount(&cluster, warm));
        let mut networks: Vec<_> = nodes.iter().map(Node::network).collect();
        networks.push(fs::read_link("/proc/thread-self/ns/net").unwrap());
        networks.sort();
        networks.dedup();
        assert_eq!(networks.len(), NODES + 1, "{networks:?}");
        test(Fleet { nodes, cluster, objects, store });
    });
}

impl Fleet {
    /// Reads all on every node at once, each in an order of its own, and compares every
    /// byte. `at` learns how many files the first node has begun.
    fn epoch(&self, at: impl Fn(usize) + Sync) {
        std::thread::scope(|scope| {
            for (n, node) in self.nodes.iter().enumerate() {
                let (objects, at) = (self.objects.shuffled(n as u64), &at);
                scope.spawn(move || {
                    let at = |begun| {
                        if n == 0 {
                            at(begun)
                        }
                    };
                    objects.read_beside(&node.mount, PREFIX, READERS, at);
                });
            }
        });
    }

    fn gets_at_origin(&self) -> usize {
        let gets = self.store.counts().get.requests as usize;
        assert_eq!(gets, self.cluster.count(Kind::OriginGet), "only the cluster asks");
        gets
    }
}

#[test]
fn a_cold_epoch_of_all_costs_the_bucket_one_get_an_object() {
    with_fleet("auto", |fleet| {
        // Readers race for cold objects now and then.
        fleet.cluster.inject(Fault::next(40, Kind::TargetGet, Trouble::Status(409)));
        fleet.epoch(|_| ());
        let gets = fleet.gets_at_origin();
        println!("{OBJECTS} objects, {NODES} nodes: {gets} GETs at the origin");
        assert!(gets >= OBJECTS && gets * 100 <= OBJECTS * 102, "{gets} of {OBJECTS}");
        for node in &fleet.nodes {
            // Each has fetched all of it, through the cluster.
            assert!(node.gets() >= OBJECTS as u64, "{}", node.gets());
        }
        // The next one costs it nothing.
        fleet.epoch(|_| ());
        assert_eq!(fleet.gets_at_origin(), gets);
        for node in &fleet.nodes {
            node.warmfs.unmount("mnt");
        }
    });
}

#[test]
fn a_target_that_dies_in_the_middle_of_an_epoch_costs_no_byte() {
    with_fleet("off", |fleet| {
        fleet.epoch(|begun| {
            if begun == OBJECTS / 3 {
                fleet.cluster.stop(0);
            }
        });
        let left: Vec<_> = fleet
            .objects
            .files
            .iter()
            .map(|(key, _)| fleet.cluster.target_of("aws", BUCKET, key).unwrap())
            .collect();
        assert!(!left.contains(&0) && left.contains(&1) && left.contains(&2), "{left:?}");
        let retries = |node: &Node| {
            let retries = node.warmfs.status()["remote"]["retries"].clone();
            retries["unreachable"].as_u64().unwrap() + retries["broken"].as_u64().unwrap()
        };
        let retries: u64 = fleet.nodes.iter().map(retries).sum();
        println!("{retries} retries, {} GETs at the origin", fleet.gets_at_origin());
        assert!(retries > 0, "nobody noticed");
        // What was on the target is fetched once more at most.
        assert!(fleet.gets_at_origin() <= 2 * OBJECTS);
    });
}
