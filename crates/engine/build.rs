//! Names the function that every line of the runtime's crates belongs to.
//!
//! The ledger knows call sites by `file:line:column`, which is all that the compiler tells at no cost;
//! an audit also says which function that is. The sources are beside this crate in the repository.
//! Where they are not, as in a package from a registry, the table is empty and audits name files and
//! lines alone.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// The crates that enter things in the ledger.
const CRATES: [&str; 5] = ["backend", "cpu", "engine", "gpu", "models"];

/// Functions of one file: first line, last line, name.
#[derive(Default)]
struct Functions {
    found: Vec<(usize, usize, String)>,
    /// The types and functions around the current one.
    around: Vec<String>,
}

impl Functions {
    fn function<N: Spanned>(&mut self, node: &N, name: &syn::Ident, visit: impl FnOnce(&mut Self)) {
        self.around.push(name.to_string());
        let span = node.span();
        self.found.push((span.start().line, span.end().line, self.around.join("::")));
        visit(self);
        self.around.pop();
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, node: &'ast syn::ItemFn) {
        self.function(node, &node.sig.ident, |this| visit::visit_item_fn(this, node));
    }

    fn visit_impl_item_fn(&mut self, node: &'ast syn::ImplItemFn) {
        self.function(node, &node.sig.ident, |this| visit::visit_impl_item_fn(this, node));
    }

    fn visit_trait_item_fn(&mut self, node: &'ast syn::TraitItemFn) {
        self.function(node, &node.sig.ident, |this| visit::visit_trait_item_fn(this, node));
    }

    fn visit_item_impl(&mut self, node: &'ast syn::ItemImpl) {
        let name = match &*node.self_ty {
            syn::Type::Path(path) => path.path.segments.last().map(|s| s.ident.to_string()),
            syn::Type::TraitObject(object) => object.bounds.iter().find_map(|bound| match bound {
                syn::TypeParamBound::Trait(t) => {
                    t.path.segments.last().map(|s| s.ident.to_string())
                }
                _ => None,
            }),
            _ => None,
        };
        let depth = self.around.len();
        self.around.extend(name);
        visit::visit_item_impl(self, node);
        self.around.truncate(depth);
    }

    fn visit_item_trait(&mut self, node: &'ast syn::ItemTrait) {
        self.around.push(node.ident.to_string());
        visit::visit_item_trait(self, node);
        self.around.pop();
    }
}

/// Every Rust file below `folder`, in a fixed order.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let crates = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    let mut table = String::from("&[\n");
    for name in CRATES {
        let root = crates.join(name).join("src");
        if !root.join("lib.rs").is_file() {
            continue;
        }
        println!("cargo::rerun-if-changed={}", root.display());
        let mut files = Vec::new();
        sources(&root, &mut files)?;
        for path in files {
            // What does not parse does not compile either: the compiler says it better.
            let Ok(file) = syn::parse_file(&fs::read_to_string(&path)?) else { continue };
            let mut functions = Functions::default();
            functions.visit_file(&file);
            let below = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
            let module = format!("crates/{name}/src/{}", below.replace('\\', "/"));
            let _ = writeln!(table, "({module:?}, &[");
            for (first, last, function) in functions.found {
                let _ = writeln!(table, "({first}, {last}, {function:?}),");
            }
            table.push_str("]),\n");
        }
    }
    table.push_str("]\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    fs::write(out.join("functions.rs"), table)
}
