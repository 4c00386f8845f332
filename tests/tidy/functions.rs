//! Length of functions. Owns: finding where a function begins and ends in formatted source. Never: a
//! parser; the formatter's shape is enough, and CI checks that shape first.

/// Most lines of a function, its signature and last brace included.
const LINES_MAX: usize = 70;

/// Functions that are longer, with the lines they may have. The list may only shrink.
const LONGER: [(&str, &str, usize); 0] = [];

fn name_of(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    loop {
        let (word, after) = rest.split_once(' ')?;
        match word {
            "fn" => return after.split(['(', '<']).next(),
            "pub" | "const" | "async" | "pub(crate)" | "pub(super)" => rest = after,
            _ if word.starts_with("pub(in") => rest = after.split_once(") ")?.1,
            _ => return None,
        }
    }
}

/// Name, line and length of every function that is too long.
fn too_long(text: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = name_of(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let closing = format!("{indent}}}");
        // The body opens where the signature ends; a declaration ends with a semicolon instead.
        let Some(open) = lines[at..].iter().position(|l| l.ends_with('{') || l.ends_with('}') || l.ends_with(';'))
        else {
            continue;
        };
        if !lines[at + open].ends_with('{') {
            continue;
        }
        let Some(len) = lines[at..].iter().position(|l| **l == closing) else { continue };
        if len + 1 > LINES_MAX {
            out.push((name.to_owned(), at + 1, len + 1));
        }
    }
    out
}

#[test]
fn functions_are_short() {
    let mut wrong = Vec::new();
    for (file, text) in crate::sources() {
        for (name, line, len) in too_long(&text) {
            let bound = LONGER.iter().find(|(f, n, _)| *f == file && *n == name).map_or(LINES_MAX, |l| l.2);
            if len > bound {
                wrong.push(format!("{file}:{line}: {name} has {len} lines, at most {bound} are allowed"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let body = "    let x = 1;\n".repeat(LINES_MAX);
    let long = format!("impl T {{\n    pub(crate) async fn f<T>(\n        a: T,\n    ) -> T {{\n{body}    }}\n}}\n");
    assert_eq!(too_long(&long), [("f".to_owned(), 2, LINES_MAX + 4)]);
    assert_eq!(too_long("trait T {\n    fn f();\n}\n"), []);
}
