/* Does what it is told, byte by byte: e(cho the next byte), r(eset), k(eyboard controller's reset),
 * t(riple fault), h(ang), p(ower off). */
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
        }
    }
}
