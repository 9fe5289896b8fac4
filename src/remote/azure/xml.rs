//! The XML of Azure's answers, as a walk over its elements. All that they say stands
//! in elements with nothing but text in them.
//!
//! A document type is refused, so no entity can be defined, and nesting is bounded:
//! memory stays in proportion to the answer, which is bounded itself.

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesStart, Event};

/// Longest path to an element, in bytes. The longest of a listing is that of a blob's
/// metadata, whose name is text of the user's.
const PATH_BYTES_MAX: usize = 16 << 10;

/// An element, at its end.
pub(super) struct Element<'a> {
    /// Its name after those of the elements it is in, with `/` between them.
    pub(super) path: &'a str,
    /// Its text; of no use if it had other elements in it.
    pub(super) text: &'a str,
    /// It says that its text is percent-encoded.
    pub(super) is_encoded: bool,
}

/// Hands each element to `take`, inner ones first. `None` for what is no XML that
/// Azure sends.
pub(super) fn walk(body: &[u8], mut take: impl FnMut(Element<'_>)) -> Option<()> {
    let text = std::str::from_utf8(body).ok()?;
    let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
    reader.config_mut().expand_empty_elements = true;
    let mut open = Open::default();
    let mut has_root = false;
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) => {
                open.start(&start)?;
                has_root = true;
            }
            Event::Text(text) => open.text.push_str(&text),
            Event::CData(text) => open.text.push_str(&text),
            Event::GeneralRef(reference) => match reference.resolve_char_ref().ok()? {
                Some(char) => open.text.push(char),
                None => open.text.push_str(resolve_predefined_entity(&reference)?),
            },
            Event::End(_) => {
                let Open { path, text, is_encoded } = &open;
                take(Element { path, text, is_encoded: *is_encoded });
                open.end();
            }
            Event::DocType(_) => return None,
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) | Event::Empty(_) => {}
            Event::Eof => return (has_root && open.path.is_empty()).then_some(()),
        }
    }
}

/// The elements that have begun, and the text since then.
#[derive(Default)]
struct Open {
    path: String,
    text: String,
    is_encoded: bool,
}

impl Open {
    fn start(&mut self, start: &BytesStart<'_>) -> Option<()> {
        if !self.path.is_empty() {
            self.path.push('/');
        }
        self.path.push_str(start.local_name().as_ref());
        self.text.clear();
        let encoded = start.try_get_attribute("Encoded").ok()?;
        self.is_encoded = encoded.is_some_and(|encoded| &*encoded.value == "true");
        (self.path.len() <= PATH_BYTES_MAX).then_some(())
    }

    fn end(&mut self) {
        self.path.truncate(self.path.rfind('/').unwrap_or(0));
        self.text.clear();
        self.is_encoded = false;
    }
}
