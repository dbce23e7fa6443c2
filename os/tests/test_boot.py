"""The ways to boot, and what is said where the machine cannot be used."""

import time
import unittest

import build_disk
from machine import Machine, MachineError

from support import BUILD, FIGURES, KERNEL, PYTHON, ROOT, config, run


class Boot(unittest.TestCase):
    def test_pvh_says_hello_and_runs_a_static_program_in_ring_3(self):
        started = time.monotonic()
        with Machine(kernel=KERNEL, root=ROOT, config=config("/usr/bin/hello")) as machine:
            machine.wait_for(r"O3StorageOS .*, booted by PVH")
            FIGURES["pvh_hello_s"] = round(time.monotonic() - started, 2)
            machine.wait_for("hello from ring 3")
            self.assertEqual(machine.status(), 7)
            self.assertIn("0 writable and executable, 0 kernel pages open", machine.console)

    def test_disk_image_by_bios_and_uefi(self):
        disk = BUILD / "test-disk.img"
        settings = BUILD / "test-disk.config"
        settings.write_bytes(config("/usr/bin/hello"))
        build_disk.build(disk, KERNEL, ROOT, settings, "ip=10.0.2.15/24 gw=10.0.2.2 log=1")
        for boot in ("bios", "uefi"):
            with self.subTest(boot), Machine(disk=disk, boot=boot) as machine:
                machine.wait_for(r"O3StorageOS .*, booted by Multiboot2", 120)
                FIGURES[f"{boot}_hello_s"] = round(time.monotonic() - machine.started_s, 2)
                machine.wait_for(r"configuration from the second boot module: 1 arguments")
                machine.wait_for("hello from ring 3")
                self.assertEqual(machine.status(), 7)

    def test_an_old_processor_without_xsave_or_smap(self):
        status, console = run(PYTHON, "-c", "print(6 * 7)", cpu="qemu64")
        self.assertEqual(status, 0)
        self.assertIn("smap: false", console)
        self.assertRegex(console, r"(?m)^42$")

    def test_without_randomness_the_boot_stops_with_that_reason(self):
        data = config("/usr/bin/hello")
        with Machine(kernel=KERNEL, root=ROOT, config=data, cpu="qemu64", rng=False) as machine:
            machine.wait_for("cannot start: no source of randomness")
            machine.wait_end(10)

    def test_a_damaged_image_or_configuration_is_refused(self):
        damaged = BUILD / "damaged.img"
        damaged.write_bytes(b"nothing of use" * 1000)
        with Machine(kernel=KERNEL, root=damaged, config=config("/usr/bin/hello")) as machine:
            machine.wait_for("cannot start: the root image cannot be read")
            machine.wait_end(10)
        with Machine(kernel=KERNEL, root=ROOT, config=b"O3CONFIG 1\nnonsense\n") as machine:
            machine.wait_for("cannot start: configuration line 2 has no '='")
        with Machine(kernel=KERNEL, root=ROOT, config=config("/usr/bin/none")) as machine:
            machine.wait_for("cannot start: /usr/bin/none: there is no such file")
        with Machine(kernel=KERNEL, root=ROOT, command_line="ip=10.0.0.300/8") as machine:
            machine.wait_for("cannot start: 'ip=10.0.0.300/8' on the kernel's command line")

    def test_a_panic_names_its_place_and_starts_again_after_5_s(self):
        # Nothing that a program can do panics; a machine whose memory the kernel fills by itself
        # does, at one place or another.
        image_kib = ROOT.stat().st_size >> 10
        for spare_kib in range(2048, 1024, -64):
            memory = f"{image_kib + spare_kib & ~7}K"
            again = ("-action", "reboot=reset")
            data = config("/usr/bin/hello")
            with Machine(
                kernel=KERNEL, root=ROOT, config=data, memory_mb=memory, extra=again
            ) as machine:
                panic = r"kernel panic at \S+\.rs:\d+: \S.*"
                first = r"(?s)" + panic + r"\n.*starting again in 5 s|power off|cannot start"
                if "kernel panic" not in machine.wait_for(first, 60)[0]:
                    continue
                began = time.monotonic()
                machine.wait_for(rf"(?s){panic}.*{panic}", 60)
                FIGURES["panic_to_panic_s"] = round(time.monotonic() - began, 2)
                # The wait is by the processor's counter: never shorter.
                self.assertGreater(time.monotonic() - began, 4.5)
                return
        self.fail("no size of memory made the kernel panic")

    def test_a_machine_error_shows_the_console(self):
        with (
            Machine(kernel=KERNEL, root=ROOT, config=config("/usr/bin/hello")) as machine,
            self.assertRaisesRegex(MachineError, "hello from ring 3"),
        ):
            machine.wait_for("this is never said", 30)


if __name__ == "__main__":
    unittest.main()
