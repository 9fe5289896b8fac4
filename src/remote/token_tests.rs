//! Tokens over a source that does as a test says, on tokio's paused clock.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::{Instant, advance, sleep};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

/// The time of day on the paused clock of this test's thread.
fn clock() -> SystemTime {
    thread_local!(static START: OnceCell<Instant> = const { OnceCell::new() });
    let start = START.with(|start| *start.get_or_init(Instant::now));
    SystemTime::UNIX_EPOCH + 1_000 * HOUR + start.elapsed()
}

/// Fetches take a second, and bring `t1`, `t2`, ... which live for `life`.
#[derive(Debug)]
struct Source {
    fetches: AtomicU64,
    life: Duration,
    fails: Mutex<Option<ErrorKind>>,
}

impl Source {
    fn new(life: Duration) -> Arc<Source> {
        Arc::new(Source { fetches: AtomicU64::new(0), life, fails: Mutex::new(None) })
    }

    fn fail(&self, kind: impl Into<Option<ErrorKind>>) {
        *self.fails.lock().unwrap() = kind.into();
    }

    fn fetches(&self) -> u64 {
        self.fetches.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl TokenSource for Source {
    async fn fetch(&self) -> Result<Token, RemoteError> {
        let count = self.fetches.fetch_add(1, Ordering::SeqCst) + 1;
        sleep(SECOND).await;
        match self.fails.lock().unwrap().clone() {
            Some(kind) => Err(RemoteError::new(kind, "run `login`")),
            None => Ok(Token::new(format!("t{count}"), Some(clock() + self.life))),
        }
    }
}

fn setup(life: Duration) -> (Arc<Source>, Tokens) {
    let source = Source::new(life);
    (source.clone(), Tokens::with_clock(Given::Source(source), clock))
}

async fn secret(tokens: &Tokens) -> Result<String, RemoteError> {
    tokens.current().await.map(|token| token.secret().to_owned())
}

async fn failure(tokens: &Tokens) -> ErrorKind {
    let error = tokens.current().await.unwrap_err();
    assert!(error.message.contains("run `login`"), "{error}");
    error.kind
}

#[test]
fn a_token_does_not_print() {
    let token = Token::new("hidden", Some(SystemTime::UNIX_EPOCH));
    let given = Given::Token(token.clone());
    assert!(!format!("{token:?} {given:?} {:?}", Tokens::new(given.clone())).contains("hidden"));
}

#[tokio::test(start_paused = true)]
async fn all_who_ask_at_once_share_one_fetch() {
    let (source, tokens) = setup(HOUR);
    let asked = (0..20).map(|_| secret(&tokens));
    let answers = futures::future::join_all(asked).await;
    assert!(answers.iter().all(|answer| answer.as_deref() == Ok("t1")));
    assert_eq!(source.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_does_not_end_the_fetch() {
    let (source, tokens) = setup(HOUR);
    assert!(tokio::time::timeout(SECOND / 2, tokens.current()).await.is_err());
    assert_eq!(secret(&tokens).await.unwrap(), "t1");
    assert_eq!(source.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_next_one_is_fetched_behind_the_readers() {
    let (source, tokens) = setup(HOUR);
    tokens.current().await.unwrap();
    advance(HOUR - REFRESH_BEFORE - SECOND).await;
    assert_eq!(secret(&tokens).await.unwrap(), "t1");
    assert_eq!(source.fetches(), 1);
    advance(2 * SECOND).await;
    let start = Instant::now();
    for _ in 0..5 {
        assert_eq!(secret(&tokens).await.unwrap(), "t1");
    }
    assert_eq!(start.elapsed(), Duration::ZERO, "nobody waits");
    sleep(2 * SECOND).await;
    assert_eq!(secret(&tokens).await.unwrap(), "t2");
    assert_eq!(source.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_of_minutes_is_not_fetched_all_the_time() {
    let (source, tokens) = setup(120 * SECOND);
    for _ in 0..600 {
        secret(&tokens).await.unwrap();
        sleep(SECOND).await;
    }
    assert!((5..=8).contains(&source.fetches()), "{}", source.fetches());
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_is_tried_again_before_the_end() {
    let (source, tokens) = setup(HOUR);
    tokens.current().await.unwrap();
    source.fail(ErrorKind::Credentials);
    advance(HOUR - REFRESH_BEFORE + SECOND).await;
    for _ in 0..60 {
        assert_eq!(secret(&tokens).await.unwrap(), "t1", "it has not ended yet");
        sleep(SECOND).await;
    }
    assert!((2..=3).contains(&source.fetches()), "{}", source.fetches());
    source.fail(None);
    sleep(PAUSE).await;
    secret(&tokens).await.unwrap();
    sleep(2 * SECOND).await;
    assert!(secret(&tokens).await.unwrap() != "t1");
}

#[tokio::test(start_paused = true)]
async fn after_the_end_one_try_answers_for_a_while() {
    let (source, tokens) = setup(HOUR);
    tokens.current().await.unwrap();
    source.fail(ErrorKind::Invalid);
    advance(HOUR).await;
    for _ in 0..20 {
        assert_eq!(failure(&tokens).await, ErrorKind::Credentials);
    }
    assert_eq!(source.fetches(), 2);
    advance(PAUSE + SECOND).await;
    assert_eq!(failure(&tokens).await, ErrorKind::Credentials);
    assert_eq!(source.fetches(), 3);
    source.fail(None);
    advance(PAUSE + SECOND).await;
    assert_eq!(secret(&tokens).await.unwrap(), "t4");
}

#[tokio::test(start_paused = true)]
async fn a_blip_is_over_soon() {
    let (source, tokens) = setup(HOUR);
    source.fail(ErrorKind::Unreachable);
    assert_eq!(failure(&tokens).await, ErrorKind::Unreachable, "the caller tries again");
    advance(BLIP_PAUSE).await;
    source.fail(None);
    tokens.current().await.unwrap();
    source.fail(ErrorKind::Unreachable);
    advance(HOUR).await;
    assert_eq!(failure(&tokens).await, ErrorKind::Credentials, "it has expired");
    advance(BLIP_PAUSE).await;
    source.fail(None);
    tokens.current().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_asks_once_gets_past_a_server_that_is_ill_for_a_moment() {
    for kind in [ErrorKind::Transient, ErrorKind::Throttled { retry_after: None }] {
        let (source, tokens) = setup(HOUR);
        source.fail(kind);
        let (ill, well) = tokio::join!(tokens.current(), async {
            sleep(3 * SECOND / 2).await;
            source.fail(None);
        });
        assert_eq!((ill.unwrap().secret(), well, source.fetches()), ("t2", (), 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_ends_a_pause() {
    let (source, tokens) = setup(HOUR);
    source.fail(ErrorKind::Credentials);
    failure(&tokens).await;
    let held = tokens.0.lock();
    assert!(matches!(held.plan(clock()), Plan::Fail(_)));
    assert_eq!(held.plan(clock() - HOUR), Plan::Wait { begin: true });
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_is_bounded() {
    #[derive(Debug)]
    struct Hanging;
    #[async_trait]
    impl TokenSource for Hanging {
        async fn fetch(&self) -> Result<Token, RemoteError> {
            std::future::pending().await
        }
    }
    let tokens = Tokens::with_clock(Given::Source(Arc::new(Hanging)), clock);
    let start = Instant::now();
    assert_eq!(tokens.current().await.unwrap_err().kind, ErrorKind::Transient);
    let limit = 3 * FETCH_LIMIT.as_secs();
    assert!((limit..=limit + 1).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_token_that_comes_expired_is_an_error() {
    let (source, tokens) = setup(EXPIRY_MARGIN);
    let error = tokens.current().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Credentials);
    assert!(error.message.contains("clock"), "{error}");
    assert_eq!(source.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_given_heals_at_once() {
    let (source, tokens) = setup(HOUR);
    source.fail(ErrorKind::Credentials);
    failure(&tokens).await;
    tokens.replace(Given::Token(Token::new("given", Some(clock() + HOUR))));
    assert_eq!(secret(&tokens).await.unwrap(), "given");
    advance(HOUR).await;
    let error = tokens.current().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Credentials);
    assert!(error.message.contains("give a new one"), "{error}");
    let other = Source::new(HOUR);
    tokens.replace(Given::Source(other));
    assert_eq!(secret(&tokens).await.unwrap(), "t1");
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_what_is_given() {
    let (source, tokens) = setup(HOUR);
    let waiting = secret(&tokens);
    let giving = async {
        sleep(SECOND / 2).await;
        tokens.replace(Given::Token(Token::new("given", None)));
    };
    assert_eq!(futures::future::join(waiting, giving).await.0.unwrap(), "given");
    sleep(HOUR).await;
    assert_eq!(secret(&tokens).await.unwrap(), "given", "the old fetch does not count");
    assert_eq!(source.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_used_again_where_there_is_no_other() {
    let (source, tokens) = setup(HOUR);
    let first = tokens.current().await.unwrap();
    source.fail(ErrorKind::Transient);
    tokens.forget(&first);
    assert_eq!(tokens.current().await.unwrap(), first);
    let tried = source.fetches();
    assert!(tried > 1, "it was tried");
    tokens.forget(&first);
    assert_eq!(tokens.current().await.unwrap(), first, "not again so soon");
    assert_eq!(source.fetches(), tried);
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_fetched_again_once() {
    let (source, tokens) = setup(HOUR);
    let first = tokens.current().await.unwrap();
    for _ in 0..20 {
        tokens.forget(&first);
    }
    let second = tokens.current().await.unwrap();
    assert_eq!((second.secret(), source.fetches()), ("t2", 2));
    tokens.forget(&first);
    tokens.forget(&second);
    assert_eq!(tokens.current().await.unwrap(), second, "not again so soon");
    assert_eq!(source.fetches(), 2);
    advance(PAUSE).await;
    tokens.forget(&second);
    assert_eq!(secret(&tokens).await.unwrap(), "t3");
}

#[tokio::test(start_paused = true)]
async fn a_request_is_made_again_with_another_token_only() {
    let (source, tokens) = setup(HOUR);
    let sent = Mutex::new(Vec::new());
    let request = async |token: Token| {
        sent.lock().unwrap().push(token.secret().to_owned());
        match token.secret() {
            "t2" => Ok(7),
            _ => Err(RemoteError::new(ErrorKind::Credentials, "401")),
        }
    };
    assert_eq!(tokens.authorised(request).await, Ok(7));
    assert_eq!(*sent.lock().unwrap(), ["t1", "t2"]);
    tokens.replace(Given::Token(Token::new("fixed", None)));
    assert_eq!(tokens.authorised(request).await.unwrap_err().message, "401");
    assert_eq!(*sent.lock().unwrap(), ["t1", "t2", "fixed"]);
    assert_eq!(source.fetches(), 2);
}

/// A remote as it uses them: its calls may move between threads.
#[derive(Debug)]
struct User {
    tokens: Tokens,
    name: String,
}

#[async_trait]
impl TokenSource for User {
    async fn fetch(&self) -> Result<Token, RemoteError> {
        let what = &format!("GET {}", self.name);
        let request = |token: Token| async move {
            sleep(SECOND).await;
            Ok(Token::new(format!("{what} with {} by {}", token.secret(), self.name), None))
        };
        self.tokens.authorised(request).await
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_borrow_from_their_remote_move_between_threads() {
    let user = User { tokens: setup(HOUR).1, name: "me".to_owned() };
    assert_eq!(user.fetch().await.unwrap().secret(), "GET me with t1 by me");
}
