//! Every function, class, global and kernel of the audited sources, by name.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::ir::{Class, ExprKind, Function, FunctionKind, Language, Module, Stmt};
use crate::msl::{Index, Kernel};

/// One source file, lowered.
pub(crate) struct SourceModule<'s> {
    /// Path as it is reported.
    pub(crate) path: String,
    pub(crate) language: Language,
    /// The text that was parsed.
    pub(crate) source: &'s str,
    /// The text as the file has it: the same as `source` line for line.
    pub(crate) original: &'s str,
    /// The same as `source` byte for byte.
    pub(crate) aligned: bool,
    pub(crate) module: Module<'s>,
    /// Kernels in the file or in its string literals.
    pub(crate) kernels: Vec<Kernel>,
}

/// What the analysis looks names up in.
pub(crate) struct Project<'s> {
    pub(crate) files: Vec<SourceModule<'s>>,
    /// Every function as (file, index in the file).
    pub(crate) functions: Vec<(u32, u32)>,
    free: HashMap<String, Vec<u32>>,
    methods: HashMap<String, Vec<u32>>,
    classes: HashMap<&'s str, (u32, u32)>,
    globals: HashMap<&'s str, Vec<u32>>,
    global_names: Vec<HashSet<&'s str>>,
    stems: HashMap<String, Vec<u32>>,
    kernels: HashMap<String, Vec<(u32, u32)>>,
    ints: HashMap<&'s str, i64>,
    /// Names of functions that take buffers in binding order, from the configuration.
    pub(crate) dispatch_helpers: HashSet<String>,
}

impl<'s> Project<'s> {
    pub(crate) fn new(files: Vec<SourceModule<'s>>, dispatch_helpers: HashSet<String>) -> Self {
        let mut project = Self {
            files: Vec::new(),
            functions: Vec::new(),
            free: HashMap::new(),
            methods: HashMap::new(),
            classes: HashMap::new(),
            globals: HashMap::new(),
            global_names: Vec::new(),
            stems: HashMap::new(),
            kernels: HashMap::new(),
            ints: HashMap::new(),
            dispatch_helpers,
        };
        for (file, source) in files.iter().enumerate() {
            project.index(file as u32, source);
        }
        project.files = files;
        project
    }

    fn index(&mut self, file: u32, source: &SourceModule<'s>) {
        let mut names = HashSet::new();
        for (i, function) in source.module.functions.iter().enumerate() {
            let id = self.functions.len() as u32;
            self.functions.push((file, i as u32));
            match function.kind {
                FunctionKind::TopLevel => self.top_level(file, &function.body, &mut names),
                FunctionKind::Free => {
                    self.free.entry(function.name.to_string()).or_default().push(id)
                }
                FunctionKind::Method | FunctionKind::Constructor => {
                    self.methods.entry(function.name.to_string()).or_default().push(id);
                }
            }
        }
        for (i, class) in source.module.classes.iter().enumerate() {
            // A declaration with fields beats one without.
            let known = self.classes.get(class.name).copied();
            if known.is_none() || !class.fields.is_empty() {
                self.classes.insert(class.name, (file, i as u32));
            }
        }
        for (i, kernel) in source.kernels.iter().enumerate() {
            self.kernels.entry(kernel.name.clone()).or_default().push((file, i as u32));
        }
        let stem = Path::new(&source.path).file_stem().and_then(|s| s.to_str()).unwrap_or("");
        self.stems.entry(stem.to_string()).or_default().push(file);
        self.global_names.push(names);
    }

    fn top_level(&mut self, file: u32, body: &[Stmt<'s>], names: &mut HashSet<&'s str>) {
        for stmt in body {
            match stmt {
                Stmt::Assign { target, value, .. } => {
                    if let ExprKind::Name(name) = target.kind {
                        if names.insert(name) {
                            self.globals.entry(name).or_default().push(file);
                        }
                        if let Some(ExprKind::Int(i)) = value.as_ref().map(|v| &v.kind) {
                            self.ints.insert(name, *i);
                        }
                    }
                }
                Stmt::Branch(arms) => arms.iter().for_each(|arm| self.top_level(file, arm, names)),
                _ => {}
            }
        }
    }

    pub(crate) fn function(&self, id: u32) -> (&SourceModule<'s>, &Function<'s>) {
        let (file, index) = self.functions[id as usize];
        let source = &self.files[file as usize];
        (source, &source.module.functions[index as usize])
    }

    pub(crate) fn file_of(&self, id: u32) -> u32 {
        self.functions[id as usize].0
    }

    pub(crate) fn class(&self, name: &str) -> Option<&Class<'s>> {
        let (file, index) = self.classes.get(name)?;
        self.files[*file as usize].module.classes.get(*index as usize)
    }

    /// The class of the audited code that a declared type names, wrappers and pointers aside.
    pub(crate) fn class_in_type(&self, ty: &'s str) -> Option<&'s str> {
        if ty.is_empty() || self.classes.is_empty() {
            return None;
        }
        ty.split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .find(|word| !word.is_empty() && self.classes.contains_key(word))
    }

    /// The declared type of a field, looked up in the class and what it inherits from.
    pub(crate) fn field_type(&self, class: &str, field: &str) -> Option<&'s str> {
        let mut class = self.class(class)?;
        for _ in 0..8 {
            if let Some((_, ty)) = class.fields.iter().find(|(name, _)| *name == field) {
                return Some(ty);
            }
            class = class.bases.iter().find_map(|base| self.class(base))?;
        }
        None
    }

    /// The method `name` of `class` or of what it inherits from.
    pub(crate) fn method(&self, class: &str, name: &str) -> Option<u32> {
        let candidates = self.methods.get(name)?;
        let mut current = class;
        for _ in 0..8 {
            let found = candidates.iter().find(|id| self.function(**id).1.class == Some(current));
            if let Some(id) = found {
                return Some(*id);
            }
            current = self.class(current)?.bases.iter().find(|b| self.classes.contains_key(**b))?;
        }
        None
    }

    pub(crate) fn constructor(&self, class: &str) -> Option<u32> {
        for name in ["__init__", "init", class] {
            if let Some(id) = self.method(class, name) {
                return Some(id);
            }
        }
        None
    }

    /// The only method of that name whose parameters fit `args` arguments.
    pub(crate) fn only_method(&self, name: &str, args: usize, language: Language) -> Option<u32> {
        only(self.methods.get(name)?.iter().copied().filter(|id| self.fits(*id, args, language)))
    }

    /// The free function that `name` means in `file`: its own, an imported one, or the only one.
    pub(crate) fn free_function(&self, file: u32, name: &str, args: usize) -> Option<u32> {
        let language = self.files[file as usize].language;
        if let Some(candidates) = self.free.get(name) {
            let local = candidates.iter().copied().filter(|id| self.file_of(*id) == file);
            let mut local = local.filter(|id| self.fits(*id, args, language)).peekable();
            if local.peek().is_some() {
                return local.next();
            }
        }
        let import = self.files[file as usize].module.imports.iter().find(|i| i.local == name);
        if let Some(item) = import.and_then(|i| i.item) {
            let from = import.map_or("", |i| i.module);
            if let Some(target) = self.module_file(file, from) {
                let candidates = self.free.get(item).map(Vec::as_slice).unwrap_or_default();
                if let Some(id) = candidates.iter().find(|id| self.file_of(**id) == target) {
                    return Some(*id);
                }
            }
        }
        let candidates = self.free.get(name)?;
        only(candidates.iter().copied().filter(|id| self.fits(*id, args, language)))
    }

    /// The function `name` at the top of `file`.
    pub(crate) fn function_in(&self, file: u32, name: &str) -> Option<u32> {
        self.free.get(name)?.iter().copied().find(|id| self.file_of(*id) == file)
    }

    fn fits(&self, id: u32, args: usize, language: Language) -> bool {
        let (source, function) = self.function(id);
        let c_like = |l| matches!(l, Language::Cpp | Language::ObjectiveC | Language::ObjectiveCpp);
        let same = source.language == language || c_like(source.language) && c_like(language);
        let variadic = function.params.iter().any(|p| p.ty == Some("*"));
        let required =
            function.params.iter().filter(|p| p.default.is_none() && p.ty != Some("*")).count();
        same && args >= required && (variadic || args <= function.params.len())
    }

    /// The audited file that a Python module name means, seen from `file`.
    pub(crate) fn module_file(&self, file: u32, module: &str) -> Option<u32> {
        let stem = module.rsplit('.').next().filter(|s| !s.is_empty())?;
        let candidates = self.stems.get(stem)?;
        let own = &self.files[file as usize].path;
        candidates
            .iter()
            .copied()
            .filter(|c| self.files[*c as usize].language == Language::Python)
            .max_by_key(|c| common_prefix(own, &self.files[*c as usize].path))
    }

    /// The file that defines the global `name`, as seen from `file`.
    pub(crate) fn global(&self, file: u32, name: &str) -> Option<u32> {
        if self.global_names[file as usize].contains(name) {
            return Some(file);
        }
        let source = &self.files[file as usize];
        let python = source.language == Language::Python;
        if let Some(import) = source.module.imports.iter().find(|i| i.local == name && python) {
            let target = self.module_file(file, import.module)?;
            let item = import.item?;
            return self.global_names[target as usize].contains(item).then_some(target);
        }
        if python {
            return None;
        }
        match self.globals.get(name)?.as_slice() {
            [one] => Some(*one),
            many => many
                .iter()
                .copied()
                .max_by_key(|f| common_prefix(&source.path, &self.files[*f as usize].path)),
        }
    }

    /// The name that an imported global has where it is defined.
    pub(crate) fn imported_name(&self, file: u32, name: &'s str) -> &'s str {
        let imports = &self.files[file as usize].module.imports;
        imports.iter().find(|i| i.local == name).and_then(|i| i.item).unwrap_or(name)
    }

    pub(crate) fn defines_global(&self, file: u32, name: &str) -> bool {
        self.global_names[file as usize].contains(name)
    }

    pub(crate) fn is_kernel(&self, name: &str) -> bool {
        self.kernels.contains_key(name)
    }

    /// The kernels called `name`, those nearest to `file` if several files have one.
    pub(crate) fn kernels(&self, file: u32, name: &str) -> Vec<&Kernel> {
        let Some(found) = self.kernels.get(name) else { return Vec::new() };
        let own = &self.files[file as usize].path;
        let near = |f: u32| {
            if f == file { usize::MAX } else { common_prefix(own, &self.files[f as usize].path) }
        };
        let best = found.iter().map(|(f, _)| near(*f)).max().unwrap_or(0);
        found
            .iter()
            .filter(|(f, _)| near(*f) == best)
            .map(|(f, k)| &self.files[*f as usize].kernels[*k as usize])
            .collect()
    }

    pub(crate) fn int(&self, name: &str) -> Option<i64> {
        self.ints.get(name).copied()
    }

    /// A kernel's index with constants that the host code defines put in.
    pub(crate) fn resolved(&self, index: &Index) -> Index {
        match index {
            Index::Name(name) => match self.int(name).and_then(|i| u32::try_from(i).ok()) {
                Some(number) => Index::Number(number),
                None => index.clone(),
            },
            Index::Number(_) => index.clone(),
        }
    }

    /// Whether `file` imports a module whose first part is one of `modules`.
    pub(crate) fn imports_any(&self, file: u32, modules: &[&str]) -> bool {
        self.files[file as usize]
            .module
            .imports
            .iter()
            .any(|i| modules.contains(&i.module.split(['.', ':']).next().unwrap_or("")))
    }
}

fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    let first = items.next()?;
    items.next().is_none().then_some(first)
}

/// How many leading path components two paths share.
fn common_prefix(a: &str, b: &str) -> usize {
    a.split('/').zip(b.split('/')).take_while(|(x, y)| x == y).count()
}
