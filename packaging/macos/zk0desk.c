/* The application's executable: it loads the Python in Resources into this process, so that macOS sees one application with one
   icon, name and menu, and hands it links and files. `sys.executable` is the interpreter itself, for the processes that are started. */
#include <dlfcn.h>
#include <libgen.h>
#include <limits.h>
#include <mach-o/dyld.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const others[] = {"PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONPYCACHEPREFIX",
                                     "QT_PLUGIN_PATH", "QT_QPA_PLATFORM_PLUGIN_PATH", "DYLD_LIBRARY_PATH"};

int main(int argc, char **argv)
{
    char raw[PATH_MAX], self[PATH_MAX], library[PATH_MAX + 64], python[PATH_MAX + 64];
    uint32_t size = sizeof raw;
    if (_NSGetExecutablePath(raw, &size) != 0 || realpath(raw, self) == NULL) {
        fputs("zk0desk does not know its own folder.\n", stderr);
        return 1;
    }
    setenv("ZK0DESK_LAUNCHER", self, 1);
    char *folder = dirname(self); /* .../zk0desk.app/Contents/MacOS */
    snprintf(library, sizeof library, "%s/../Resources/python/lib/libpython3.12.dylib", folder);
    snprintf(python, sizeof python, "%s/../Resources/python/bin/python3.12", folder);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) unsetenv(others[i]);
    setenv("PYTHONNOUSERSITE", "1", 1);
    setenv("PYTHONSAFEPATH", "1", 1);
    setenv("PYTHONEXECUTABLE", python, 1);

    void *loaded = dlopen(library, RTLD_NOW | RTLD_GLOBAL);
    int (*run)(int, char **) = loaded ? (int (*)(int, char **))dlsym(loaded, "Py_BytesMain") : NULL;
    if (run == NULL) {
        fprintf(stderr, "zk0desk's Python could not be loaded: %s\nInstall zk0desk again.\n", dlerror());
        return 1;
    }
    char **given = calloc((size_t)argc + 5, sizeof *given);
    if (given == NULL) return 1;
    char *first[] = {python, "-s", "-P", "-m", "zk0desk"};
    memcpy(given, first, sizeof first);
    for (int i = 1; i < argc; i++) given[4 + i] = argv[i];
    return run(argc + 4, given);
}
