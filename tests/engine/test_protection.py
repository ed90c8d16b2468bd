"""What a class protects from Ctrl-C."""

from trio.lowlevel import currently_ki_protected

from trio_fanout._protection import protected


async def test_methods_are_protected_but_for_those_that_are_named():
    @protected(but="free")
    class One:
        attribute = 3

        def held(self):
            return currently_ki_protected()

        async def held_too(self):
            return currently_ki_protected()

        def free(self):
            return currently_ki_protected()

    @protected(but=("free", "free_too"))
    class Two(One):
        def free(self):
            return currently_ki_protected()

        def free_too(self):
            return currently_ki_protected()

        def held_as_well(self):
            return self.free()

    one, two = One(), Two()
    assert one.held()
    assert await one.held_too()
    assert not one.free()
    assert not two.free()
    assert not two.free_too()
    assert not two.held_as_well()
    assert one.attribute == 3
