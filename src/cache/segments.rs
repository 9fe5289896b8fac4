//! How one folder is listed by several requests at once.
//!
//! A listing names its keys in order, a page after the other, and each page takes a
//! round trip. Where the remote can begin after any key, a folder that turns out to be
//! large is cut into segments by key, which are listed side by side. Nobody knows
//! where its keys lie, so what is left of a segment is cut in the middle of the
//! characters that were seen; where nothing lies behind the cut, one request was for
//! nothing, and that is known from then on.
//!
//! Pure: the caller sends what [`Segments::next`] asks for, and hands what came to
//! [`Segments::landed`]. All keys here are without the prefix of the folder.

use std::collections::{BTreeSet, VecDeque};

use crate::remote::pages::Pages;
use crate::remote::{ListPage, RemoteError};

/// Requests for one folder at once, at most: on two cores, more come faster than
/// their entries can be written down.
const WIDTH_MAX: usize = 16;

/// Pages after which what is left of a segment may be cut: most folders end sooner.
const PAGES_BEFORE_CUT: u64 = 2;

/// Requests that may be for nothing: a few, and one in so many pages.
const CUTS_FREE: u64 = 12;
const PAGES_PER_CUT: u64 = 8;

/// Characters from the beginning of a name up to which one looks for a cut.
const CUT_CHARS_MAX: usize = 64;

/// Characters that are remembered: names in many scripts are cut well by a few.
const ALPHABET_MAX: usize = 256;

/// A listing of one folder.
#[derive(Debug)]
pub(super) struct Segments {
    /// In the order of their keys; together they have all of them.
    segments: Vec<Segment>,
    next_id: u64,
    /// Characters of names that came.
    alphabet: BTreeSet<char>,
    pages: u64,
    cuts: u64,
    may_cut: bool,
    /// Keys came in order so far.
    is_ordered: bool,
    /// Names of which it is known whether there is a folder of that name.
    settled: BTreeSet<String>,
}

/// The keys after one, up to another that may be among them.
#[derive(Debug)]
struct Segment {
    id: u64,
    after: String,
    until: Option<String>,
    /// The last key that came, or `after`.
    cursor: String,
    token: Option<String>,
    state: State,
    pages: Pages,
    /// Pages that came of it, since keys were found behind a cut.
    pages_since_cut: u64,
    /// Nothing of it has come.
    is_new: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Asked,
    Done,
}

/// A page that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub id: u64,
    /// Only keys after this one.
    pub after: Option<String>,
    /// Go on with this.
    pub token: Option<String>,
}

impl Segments {
    /// Begins a listing; `may_cut` if the remote can begin after any key.
    pub(super) fn new(may_cut: bool) -> Self {
        let all = Segment::new(0, String::new(), None);
        Segments {
            segments: vec![all],
            next_id: 1,
            alphabet: BTreeSet::new(),
            pages: 0,
            cuts: 0,
            may_cut,
            is_ordered: true,
            settled: BTreeSet::new(),
        }
    }

    /// Whether all pages came.
    pub(super) fn is_done(&self) -> bool {
        self.segments.iter().all(|segment| segment.state == State::Done)
    }

    /// A page to ask for now, if one more may be on its way.
    pub(super) fn next(&mut self) -> Option<Ask> {
        let asked = self.segments.iter().filter(|segment| segment.state == State::Asked).count();
        // Wider with each page: small folders cost nothing more for it.
        let width = WIDTH_MAX.min(1 + (self.pages / 2) as usize);
        if asked >= width {
            return None;
        }
        let is_waiting = |segment: &&mut Segment| segment.state == State::Waiting;
        if let Some(first) = self.segments.iter_mut().find(is_waiting) {
            return Some(first.ask());
        }
        self.cut()
    }

    /// Cuts the segment of which most came and is still to come.
    fn cut(&mut self) -> Option<Ask> {
        let is_paid = self.cuts < CUTS_FREE + self.pages / PAGES_PER_CUT;
        if !self.may_cut || !self.is_ordered || !is_paid {
            return None;
        }
        let alphabet = &self.alphabet;
        let (at, middle) = self
            .segments
            .iter()
            .enumerate()
            .filter(|(_, segment)| segment.pages_since_cut >= PAGES_BEFORE_CUT)
            .filter(|(_, segment)| segment.state == State::Asked)
            .filter_map(|(at, segment)| {
                let middle = between(&segment.cursor, segment.until.as_deref(), alphabet)?;
                (middle > segment.cursor).then_some((at, segment.pages_since_cut, middle))
            })
            // Of several, the first: its reader comes there first.
            .max_by_key(|(at, pages, _)| (*pages, std::cmp::Reverse(*at)))
            .map(|(at, _, middle)| (at, middle))?;
        let segment = &mut self.segments[at];
        let until = segment.until.replace(middle.clone());
        let mut behind = Segment::new(self.next_id, middle, until);
        self.next_id += 1;
        self.cuts += 1;
        let ask = behind.ask();
        self.segments.insert(at + 1, behind);
        Some(ask)
    }

    /// A page came, of keys that begin with `prefix`: what belongs to other segments is
    /// taken out of it.
    ///
    /// # Errors
    /// If the listing does not come to an end.
    pub(super) fn landed(
        &mut self,
        id: u64,
        prefix: &str,
        page: &mut ListPage,
    ) -> Result<(), RemoteError> {
        let Some(at) = self.segments.iter().position(|segment| segment.id == id) else {
            return Ok(()); // It was taken back.
        };
        self.pages += 1;
        let segment = &mut self.segments[at];
        segment.pages.check(prefix, page)?;
        segment.pages_since_cut += 1;
        let was_new = std::mem::take(&mut segment.is_new);
        let Some((first, last)) = bounds(page, prefix) else {
            segment.go_on(page.next.take());
            return Ok(());
        };
        // A common prefix may come again with the next page.
        let follows = first >= segment.cursor && (at == 0 || first > segment.after);
        if !follows || !is_sorted(page) {
            self.is_ordered = false;
            self.take_back(at);
            if at > 0 {
                return Ok(());
            }
        }
        self.remember_characters(&first, &last);
        let segment = &mut self.segments[at];
        segment.cursor.clone_from(&last);
        let is_over = segment.until.as_deref().is_some_and(|until| {
            page.objects.retain(|object| rest(&object.key.0, prefix) <= until);
            page.prefixes.retain(|folder| rest(folder, prefix) <= until);
            last.as_str() >= until
        });
        segment.go_on(page.next.take().filter(|_| !is_over));
        let found_some = !page.objects.is_empty() || !page.prefixes.is_empty();
        if was_new && found_some && at > 0 {
            // It has become smaller: others are cut before it is again.
            self.segments[at - 1].pages_since_cut = 0;
        }
        Ok(())
    }

    /// The remote does not begin after a key: `false` if it was not asked to.
    pub(super) fn refused(&mut self, id: u64) -> bool {
        let at = self.segments.iter().position(|segment| segment.id == id);
        let Some(at) = at.filter(|at| *at > 0) else { return id > 0 };
        self.take_back(at);
        true
    }

    /// The remote does not begin where it is told to, or names keys in no order: a segment
    /// that was cut off goes back to the one before it, or all to the first, and no more
    /// are cut.
    fn take_back(&mut self, at: usize) {
        self.may_cut = false;
        if at == 0 {
            self.segments.truncate(1);
            self.segments[0].until = None;
            return;
        }
        let behind = self.segments.remove(at);
        let before = &mut self.segments[at - 1];
        before.until = behind.until;
        // It may have ended at the cut. From there on there is nothing to go on with.
        if before.state == State::Done {
            let (id, after) = (before.id, before.after.clone());
            *before = Segment::new(id, after, before.until.take());
        }
    }

    fn remember_characters(&mut self, first: &str, last: &str) {
        for char in first.chars().chain(last.chars()).filter(|char| *char != '/') {
            if self.alphabet.len() < ALPHABET_MAX {
                self.alphabet.insert(char);
            }
        }
    }

    /// All names before this one are known; `None` once all are. A name is known once
    /// it is past whatever a folder of that name would be listed under: `a/` comes
    /// after `a-b`, and takes the name from an object `a`.
    pub(super) fn known_below(&self) -> Option<String> {
        let first = self.segments.iter().find(|segment| segment.state != State::Done)?;
        if !self.is_ordered {
            return Some(String::new());
        }
        let cursor = &first.cursor;
        if let Some(open) = self.open_name(cursor) {
            return Some(open.to_owned());
        }
        let name = cursor.split('/').next().unwrap_or_default();
        Some(format!("{name}\0"))
    }

    /// The first name that a folder may still take, before the name at `cursor` or with it.
    fn open_name<'a>(&self, cursor: &'a str) -> Option<&'a str> {
        let name = cursor.split('/').next().unwrap_or_default();
        let ends = name.char_indices().map(|(at, _)| at).filter(|at| *at > 0).chain([name.len()]);
        let is_open = |end: &usize| {
            let follows = cursor.as_bytes().get(*end);
            *end > 0
                && follows.is_none_or(|next| *next < b'/')
                && !self.settled.contains(&name[..*end])
        };
        ends.into_iter().find(is_open).map(|end| &name[..end])
    }

    /// The name that keeps those after it from being known, if it is one.
    pub(super) fn open(&self) -> Option<&str> {
        let first = self.segments.iter().find(|segment| segment.state != State::Done)?;
        self.open_name(&first.cursor).filter(|_| self.is_ordered)
    }

    /// It is known by now whether there is a folder `name`.
    pub(super) fn settle(&mut self, name: String) {
        self.settled.insert(name);
    }
}

impl Segment {
    fn new(id: u64, after: String, until: Option<String>) -> Self {
        Segment {
            id,
            cursor: after.clone(),
            after,
            until,
            token: None,
            state: State::Waiting,
            pages: Pages::default(),
            pages_since_cut: 0,
            is_new: true,
        }
    }

    fn ask(&mut self) -> Ask {
        self.state = State::Asked;
        let token = self.token.take();
        let is_begun = token.is_some() || self.after.is_empty();
        Ask { id: self.id, after: (!is_begun).then(|| self.after.clone()), token }
    }

    fn go_on(&mut self, token: Option<String>) {
        self.state = if token.is_some() { State::Waiting } else { State::Done };
        self.token = token;
    }
}

/// What follows the folder's prefix in a key.
fn rest<'a>(key: &'a str, prefix: &str) -> &'a str {
    key.strip_prefix(prefix).unwrap_or_default()
}

/// The first and the last key of a page.
fn bounds(page: &ListPage, prefix: &str) -> Option<(String, String)> {
    let objects = [page.objects.first(), page.objects.last()].map(|o| o.map(|o| o.key.0.as_str()));
    let prefixes = [page.prefixes.first(), page.prefixes.last()].map(|p| p.map(String::as_str));
    let first = [objects[0], prefixes[0]].into_iter().flatten().min()?;
    let last = [objects[1], prefixes[1]].into_iter().flatten().max()?;
    Some((rest(first, prefix).to_owned(), rest(last, prefix).to_owned()))
}

fn is_sorted(page: &ListPage) -> bool {
    page.objects.is_sorted_by(|a, b| a.key.0 < b.key.0) && page.prefixes.is_sorted_by(|a, b| a < b)
}

/// A string after `low` and before `high`, in the middle of those that can be made of
/// `alphabet`; `None` if there seems to be none.
fn between(low: &str, high: Option<&str>, alphabet: &BTreeSet<char>) -> Option<String> {
    // All that is in a folder is behind it: nothing lies between `a/` and `a0` but those.
    let end = low.find('/').map_or(low.len(), |slash| slash + 1);
    let low: Vec<char> = low[..end].chars().collect();
    let mut high: Option<VecDeque<char>> = high.map(|high| high.chars().collect());
    let mut middle = String::new();
    for at in 0..CUT_CHARS_MAX {
        let least = low.get(at).copied();
        let bound = match &mut high {
            // `high` is the beginning of `low`, or `low` itself: nothing is between.
            Some(high) => Some(high.pop_front()?),
            None => None,
        };
        let is_between = |char: &char| least < Some(*char) && bound.is_none_or(|most| *char < most);
        let choice: Vec<char> = alphabet.iter().copied().filter(is_between).collect();
        if let Some(char) = choice.get(choice.len() / 2) {
            middle.push(*char);
            return Some(middle);
        }
        let least = least.filter(|char| *char != '/')?;
        if bound != Some(least) {
            high = None; // From here on all of it is below.
        }
        middle.push(least);
    }
    None
}

#[cfg(test)]
mod tests {
    use std::ops::Bound;
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;
    use crate::remote::{Key, ObjectMeta, Version};

    const PREFIX: &str = "p/";

    /// A remote of these keys, all below [`PREFIX`].
    struct Bucket {
        keys: BTreeSet<String>,
        page: usize,
        /// Whether it begins where it is told to.
        starts_after: bool,
    }

    impl Bucket {
        fn numbered(count: usize) -> Bucket {
            let keys = (0..count).map(|n| format!("{n:08}.jpg")).collect();
            Bucket { keys, page: 1_000, starts_after: true }
        }

        fn page(&self, ask: &Ask) -> ListPage {
            let after = ask.token.clone().or(ask.after.clone().filter(|_| self.starts_after));
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            let mut page = ListPage::default();
            let mut last = None;
            for key in self.keys.range((from, Bound::Unbounded)) {
                let folded = key.split_once('/').map(|(folder, _)| format!("{folder}/"));
                if folded.is_some()
                    && page.prefixes.last().is_some_and(|p| Some(&p[2..]) == folded.as_deref())
                {
                    last = Some(key.clone());
                    continue;
                }
                if page.objects.len() + page.prefixes.len() == self.page {
                    page.next = last;
                    break;
                }
                last = Some(key.clone());
                match folded {
                    Some(folder) => page.prefixes.push(format!("{PREFIX}{folder}")),
                    None => page.objects.push(ObjectMeta {
                        key: Key(format!("{PREFIX}{key}")),
                        size: 0,
                        version: Version("v".to_owned()),
                        mtime: UNIX_EPOCH,
                    }),
                }
            }
            page
        }

        /// The entries that come, pages in the order that `dice` gives, with their
        /// number and the longest row of pages one after the other.
        fn list(&self, mut dice: impl FnMut(usize) -> usize) -> (Vec<String>, usize, usize) {
            let mut segments = Segments::new(true);
            let mut asked: Vec<(Ask, usize)> = Vec::new();
            let mut came: Vec<String> = Vec::new();
            let (mut pages, mut turns) = (0, 0);
            while !segments.is_done() {
                while let Some(ask) = segments.next() {
                    asked.push((ask, turns));
                }
                assert!(!asked.is_empty(), "it is at an end without being done");
                let (ask, turn) = asked.remove(dice(asked.len()));
                let mut page = self.page(&ask);
                segments.landed(ask.id, PREFIX, &mut page).unwrap();
                turns = turns.max(turn + 1);
                pages += 1;
                assert!(pages < 100_000);
                let below = segments.known_below();
                came.extend(page.objects.iter().map(|object| object.key.0[2..].to_owned()));
                came.extend(page.prefixes.iter().map(|folder| folder[2..].to_owned()));
                self.check(below.as_deref(), &came);
            }
            came.sort();
            (came, pages, turns)
        }

        /// All that is before `below` has come.
        fn check(&self, below: Option<&str>, came: &[String]) {
            if came.len() > 3_000 {
                return; // It was checked on the way there, and takes long.
            }
            let came: BTreeSet<&str> = came.iter().map(String::as_str).collect();
            for entry in self.entries() {
                let name = entry.trim_end_matches('/');
                if below.is_none_or(|below| name < below) {
                    assert!(came.contains(entry.as_str()), "{entry:?} is missing below {below:?}");
                }
            }
        }

        fn entries(&self) -> BTreeSet<String> {
            let folded = |key: &String| match key.split_once('/') {
                Some((folder, _)) => format!("{folder}/"),
                None => key.clone(),
            };
            self.keys.iter().map(folded).collect()
        }
    }

    fn in_turn(_: usize) -> usize {
        0
    }

    /// Requests for so many pages, at most; those for nothing are pages, too.
    fn most(pages: usize) -> usize {
        let per_cut = PAGES_PER_CUT as usize;
        (pages + CUTS_FREE as usize) * per_cut / (per_cut - 1) + 1
    }

    #[test]
    fn a_small_folder_costs_its_pages() {
        for (count, pages) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (2_000, 2)] {
            let (came, asked, _) = Bucket::numbered(count).list(in_turn);
            assert_eq!((came.len(), asked), (count, pages));
        }
    }

    #[test]
    fn a_large_folder_comes_side_by_side() {
        let bucket = Bucket::numbered(200_000);
        let (came, pages, turns) = bucket.list(in_turn);
        assert_eq!(came.len(), 200_000);
        assert!(pages <= most(200), "{pages} pages for 200");
        assert!(turns < 50, "{turns} round trips");
    }

    #[test]
    fn names_that_begin_alike_or_lie_in_one_corner_come_side_by_side_too() {
        for name in ["frame-{}", "{}", "a/{}x", "\u{e9}t\u{e9} {}"] {
            let keys = (0..100_000).map(|n| name.replace("{}", &format!("{:x}", n * 7919)));
            let keys = keys.map(|key| key.replace('/', "_")).collect();
            let bucket = Bucket { keys, page: 1_000, starts_after: true };
            let (came, pages, turns) = bucket.list(in_turn);
            assert_eq!(came.len(), 100_000);
            assert!(pages <= most(100), "{name}: {pages} pages");
            assert!(turns < 50, "{name}: {turns} round trips");
        }
    }

    #[test]
    fn a_remote_that_cannot_begin_after_a_key_is_listed_in_turn() {
        let bucket = Bucket { starts_after: false, ..Bucket::numbered(20_000) };
        let (mut came, pages, _) = bucket.list(in_turn);
        came.dedup();
        assert_eq!(came.len(), 20_000);
        assert!(pages < 40, "{pages}");
    }

    #[test]
    fn what_a_folder_may_still_take_is_not_known() {
        let mut segments = Segments::new(true);
        let mut known = |keys: &[&str]| {
            let bucket = Bucket {
                keys: keys.iter().map(|key| (*key).to_owned()).collect(),
                page: keys.len() - 1,
                starts_after: true,
            };
            segments = Segments::new(true);
            let ask = segments.next().unwrap();
            segments.landed(ask.id, PREFIX, &mut bucket.page(&ask)).unwrap();
            segments.known_below().unwrap()
        };
        assert_eq!(known(&["a", "b", "z"]), "b", "b/ may follow");
        assert_eq!(known(&["a", "b.jpg", "z"]), "b");
        assert_eq!(known(&["a", "b/x", "z"]), "b\0");
        assert_eq!(known(&["img-1.jpg", "img-2.jpg", "z"]), "img");
        segments.settle("img".to_owned());
        assert_eq!(segments.known_below().unwrap(), "img-2");
    }

    proptest! {
        #[test]
        fn every_entry_comes_once_whatever_the_order_of_pages(
            keys in proptest::collection::btree_set("[a-c0-2./\u{e9} -]{1,8}", 0..200),
            page in 1_usize..8,
            order in proptest::collection::vec(any::<prop::sample::Index>(), 1..64),
        ) {
            // An empty name is no entry of a folder; such keys are listed by others.
            let keys = keys.into_iter().filter(|key| !key.starts_with('/')).collect();
            let bucket = Bucket { keys, page, starts_after: true };
            let mut turn = 0;
            let (came, _, _) = bucket.list(|count| {
                turn += 1;
                order[turn % order.len()].index(count)
            });
            let entries: Vec<String> = bucket.entries().into_iter().collect();
            prop_assert_eq!(came, entries);
        }

        #[test]
        fn a_cut_lies_between(
            low in "[a-c0-2\u{e9}-]{0,6}/?",
            high in proptest::option::of("[a-c0-2\u{e9}-]{1,6}"),
        ) {
            let alphabet: BTreeSet<char> = "abc012-\u{e9}".chars().collect();
            prop_assume!(high.as_ref().is_none_or(|high| *high > low));
            if let Some(middle) = between(&low, high.as_deref(), &alphabet) {
                prop_assert!(middle > low);
                prop_assert!(high.is_none_or(|high| middle < high));
            }
        }
    }
}
