"""Runs programs of a layer, and reads as others. allowed.py ROOT"""

import os
import subprocess
import sys

ROOT = sys.argv[1]
faults = []


def run(name, *arguments, user=None, group=None):
    path = os.path.join(ROOT, name)
    try:
        done = subprocess.run([path, *arguments], capture_output=True, user=user, group=group, extra_groups=[], text=True)
        return done.returncode, done.stdout.strip()
    except OSError as error:
        return type(error).__name__, ""


def expect(what, got, wanted):
    if got != wanted:
        faults.append(f"{what}: {got} instead of {wanted}")


def can_open(name, user, group):
    """Whether such a user may read a file."""
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        try:
            open(os.path.join(ROOT, name), "rb").read()
            os._exit(0)
        except PermissionError:
            os._exit(1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


for _ in range(2):
    status, said = run("bin/static", "--version")
    expect("a static program", (status, "ldconfig" in said), (0, True))
    expect("a script", run("bin/script"), (0, "from a script"))
    expect("a file that is no program", run("bin/not")[0], "PermissionError")
    expect("setuid", run("bin/as1234", "-u", user=65534, group=65534), (0, "1234"))
    expect("setgid", run("bin/group1235", "-g", user=65534, group=65534), (0, "1235"))
    expect("a program with a capability", run("bin/capable", f"{ROOT}/secret", user=65534, group=65534), (0, "secret"))
    expect("nobody reads what is the group's", can_open("secret", 65534, 65534), 1)
    expect("the group reads it", can_open("secret", 65534, 1235), 0)
    expect("an ACL lets user 1000 read", can_open("granted", 1000, 65534), 0)
    expect("an ACL lets user 1001 not", can_open("granted", 1001, 65534), 1)
sys.exit("\n".join(faults) or 0)
