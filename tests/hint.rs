//! The order of an epoch, told to the daemon: through the socket, a mount and a store.

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::epoch::drop_pages;
use common::store::{BUCKET, Store};
use common::tree::noise;
use common::{Warmfs, eventually};
use serde_json::{Value, json};
use warmfs::embedded_store::StoreOptions;

const OBJECTS: usize = 200;

/// More than fits the daemon's memory besides.
const MANY: usize = 1_000;
const BYTES: usize = 100_000;

/// `POST /v1/hint`: the status, and what came with it.
fn hint(warmfs: &Warmfs, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    let mut socket = UnixStream::connect(warmfs.record().unwrap().socket).unwrap();
    write!(
        socket,
        "POST /v1/hint HTTP/1.1\r\nhost: warmfs\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    (status, serde_json::from_str(body).unwrap_or_default())
}

fn store(objects: usize) -> Store {
    // So that who reads is not faster than what is given up for it, a commit each time.
    let ttfb = Duration::from_millis(3);
    let store = Store::with(StoreOptions { ttfb, ..StoreOptions::default() });
    for n in 0..objects {
        store.put(BUCKET, format!("data/{}/{n:03}", n % 4), noise(n as u64, BYTES));
    }
    store
}

fn path(n: usize) -> String {
    format!("{}/{n:03}", n % 4)
}

/// An order that is no listing's.
fn shuffled(objects: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..objects).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    order
}

fn tell(warmfs: &Warmfs, dir: &str, name: &str, order: &[usize]) {
    let paths: Vec<String> = order.iter().map(|n| path(*n)).collect();
    for (at, part) in paths.chunks(80).enumerate() {
        let body = json!({"dir": dir, "order": name, "first": at * 80, "paths": part});
        assert_eq!(hint(warmfs, &body).0, 200, "{}", warmfs.log());
    }
}

#[test]
fn an_order_is_fetched_as_it_is_used() {
    let store = store(OBJECTS);
    let warmfs = store.warmfs();
    let options = ["--warm", "off", "--cache-size", "1G"];
    let mount = warmfs.mount_with("s3://bucket/data", "mount", &options);
    let order = shuffled(OBJECTS, 1);
    tell(&warmfs, mount.to_str().unwrap(), "one", &order);
    eventually("all of it is there", || warmfs.status()["prefetched"]["objects"] == OBJECTS);
    let log = store.log();
    let asked: Vec<String> = log
        .iter()
        .filter(|request| request.op == warmfs::embedded_store::Op::Get)
        .map(|request| request.key.clone())
        .collect();
    assert_eq!(asked.len(), OBJECTS);
    // Some 40 are under way at once.
    for (at, n) in order.iter().enumerate() {
        let key = format!("data/{}", path(*n));
        let was = asked.iter().position(|asked| *asked == key).unwrap();
        assert!(was.abs_diff(at) < 64, "{key} is {at} in the order, and was asked for as {was}");
    }
    store.reset_log();
    for n in order {
        assert_eq!(fs::read(mount.join(path(n))).unwrap(), noise(n as u64, BYTES));
    }
    assert_eq!(store.counts().get.requests, 0);
}

#[test]
fn an_order_that_does_not_fit_costs_no_more_than_what_does_not_fit() {
    let store = store(MANY);
    let warmfs = store.warmfs();
    // Half of the bytes.
    let options = ["--warm", "off", "--cache-size", "50M", "--memory-limit", "16M"];
    let mount = warmfs.mount_with("s3://bucket/data", "mount", &options);
    let dir = mount.to_str().unwrap();
    let (mut gets, mut ahead) = (Vec::new(), Vec::new());
    let prefetched = || warmfs.status()["prefetched"]["objects"].as_u64().unwrap();
    for epoch in 0..4 {
        let before = prefetched();
        let order = shuffled(MANY, epoch);
        store.reset_log();
        tell(&warmfs, dir, &format!("epoch {epoch}"), &order);
        for n in order {
            // A dataset that exceeds the cache exceeds the kernel's, too.
            let mut file = File::open(mount.join(path(n))).unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, noise(n as u64, BYTES));
            drop_pages(&file).unwrap();
        }
        gets.push(store.counts().get.requests);
        ahead.push(prefetched() - before);
    }
    println!("{gets:?} GETs of {MANY} objects in epochs with half of the room, {ahead:?} ahead");
    let used = warmfs.status()["cache"]["used_bytes"].as_u64().unwrap();
    assert!(used <= 50 << 20, "{used}");
    // Without a word of the order it is about half, if the half that stays is a stable one.
    for (gets, ahead) in gets.iter().zip(&ahead) {
        assert!(*gets < MANY as u64 * 3 / 4 || *gets == MANY as u64, "{gets}");
        // What was read makes room for it.
        assert!(ahead * 2 > *gets, "{ahead} of {gets} were fetched before they were read");
    }
}

#[test]
fn what_is_wrong_is_said_and_the_rest_is_gone_along() {
    let store = store(OBJECTS);
    let warmfs = store.warmfs();
    let options = ["--warm", "off", "--cache-size", "1G"];
    let mount = warmfs.mount_with("s3://bucket/data", "mount", &options);
    let dir = mount.to_str().unwrap();
    let ask = |body: Value| {
        let (status, reply) = hint(&warmfs, &body);
        (status, reply["message"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(ask(json!({"dir": dir, "order": "", "first": 0, "paths": []})).0, 200);
    let (status, said) = ask(json!({"dir": "/nowhere", "order": "", "first": 0, "paths": []}));
    assert!(status == 404 && said.contains("not a warmfs mount"), "{said}");
    let paths = [path(7), "none/at/all".to_owned(), "3".to_owned()];
    let (status, said) = ask(json!({"dir": dir, "order": "a", "first": 0, "paths": paths}));
    assert!(status == 404 && said.contains("2 of 3 paths are no files here"), "{said}");
    eventually("what is known is fetched", || warmfs.status()["prefetched"]["objects"] == 1);
    let (status, said) = ask(json!({"dir": dir, "order": "a", "first": 9, "paths": []}));
    assert!(status == 400 && said.contains("goes on at 3"), "{said}");
    let (status, _) = ask(json!({"dir": dir, "order": "b", "first": 0, "paths": [path(8)]}));
    assert_eq!(status, 200);
}
