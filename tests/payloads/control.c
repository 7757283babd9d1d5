/* Does what it is told, byte by byte: e(cho the next byte), r(eset), k(eyboard controller's reset),
 * t(riple fault), h(ang), p(ower off). For hotplug: a(sk which slots to check), b (which to give up), j (eject slot
 * 'A' + N), s(how who is in slot 'A' + N). */
#include "payload.h"

static const struct { u16 limit; u64 base; } __attribute__((packed)) no_interrupts = { 0, 0 };

void main(void)
{
    print("ready\n");
    for (;;) {
        switch (get()) {
        case 'e': put(get()); break;
        case 'r': reset();
        case 'k': outb(0x64, 0xfe); break;
        case 't': asm volatile("lidt %0; ud2" : : "m"(no_interrupts));
        case 'h': for (;;) asm volatile("hlt");
        case 'p': power_off();
        case 'a': print_hex(inl(0x620), 8), put('\n'); break;
        case 'b': print_hex(inl(0x624), 8), put('\n'); break;
        case 'j': outl(0x628, 1u << (get() - 'A')), print("ejected\n"); break;
        case 's': print_hex(read32(ECAM + ((u64)(get() - 'A') << 15)), 8), put('\n'); break;
        }
    }
}
