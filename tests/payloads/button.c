/* Says that it is ready, and switches itself off when the power button is pressed. It looks for the button's interrupt
 * instead of taking it, because not every KVM that runs payloads can deliver one. */
#include "payload.h"

#define IO_APIC 0xfec00000ul
#define LOCAL_APIC 0xfee00000ul
#define POWER_BUTTON 5 /* its global system interrupt */
#define VECTOR 0x40

static void io_apic(u32 index, u32 value) { write32(IO_APIC, index), write32(IO_APIC + 0x10, value); }

void main(void)
{
    write32(LOCAL_APIC + 0xf0, 0x1ff);        /* on */
    io_apic(0x11 + 2 * POWER_BUTTON, 0);      /* to CPU 0 */
    io_apic(0x10 + 2 * POWER_BUTTON, VECTOR); /* at each edge */
    print("ready\n");
    while (!(read32(LOCAL_APIC + 0x200 + VECTOR / 32 * 16) & 1u << VECTOR % 32))
        ;
    print("off\n");
    power_off();
}
