"""The constants of a simulated fleet, all of them; the SHA-256 of this file stands beside every data set made with it.

A range is drawn from evenly unless its comment says otherwise. Sources are named by author and year:

Bussgang 1952, crosscorrelation functions of amplitude-distorted Gaussian signals. Dimla 2000, sensor signals for tool
wear monitoring: a review. Fisher 1922, on the interpretation of chi-squared: the root of a chi-squared number is nearly
normal. Gebraeel, Lawley, Li and Ryan 2005, residual-life distributions from component degradation signals (bearings:
exponential growth). Harris and Kotzalas 2006, rolling bearing analysis. ISO 10816-1:1995, evaluation of machine
vibration: neighbouring zones of severity are a factor of 2.5 (8 dB) apart. Kienzle 1952, cutting forces of metals. Li,
Kurfess and Liang 2000, stochastic prognostics for rolling element bearings (a defect grows with a power of its size).
Nectoux and others 2012, PRONOSTIA (long quiet lives with an abrupt end). Paris and Erdogan 1963, crack propagation.
Randall 2011, vibration-based condition monitoring. Randall and Antoni 2011, rolling element bearing diagnostics, a
tutorial. Welch 1967, averaged periodograms.
"""

from __future__ import annotations

# Operation. A machine tool: off outside its shift, else idle and cutting by turns
SHIFT_HOURS = (24.0, 16.0, 9.0)  # around the clock, two shifts, one shift ...
SHIFT_SHARES = (0.4, 0.35, 0.25)  # ... and how many machines work so
SHIFT_START, SHIFT_JITTER = (5.0, 8.0), 0.3  # hour of the day; standard deviation from day to day
REGIMES = ("off", "idle", "light cut", "heavy cut")
DWELL_MINUTES = (0.0, 14.0, 50.0, 35.0)  # mean stay in each regime; gamma distributed, shape 3
HEAVY_SHARE = 0.4  # of the cuts
REGIME_SPEED = ((0.0, 0.0), (0.5, 0.5), (1.0, 1.2), (0.8, 1.0))  # of nominal: finishing is fast, roughing slow
REGIME_LOAD = (0.0, 0.0, 0.7, 1.3)  # cutting force, of the mean
JOB_SIGMA, JOB_DAYS = 0.3, (0.3, 4.0)  # log, of a job: aluminium needs a third of the force of steel (Kienzle 1952)
LOAD_SIGMA = 0.15  # log, of a dwell: depth of cut
LOAD_DAILY, LOAD_SEASONAL = 0.05, 0.10  # load swings with the hour and with the day of the year, the fleet together
LEVEL_DAILY, LEVEL_SEASONAL = 0.02, 0.03  # amplitude swings with the warmth of the hall
SLOW_WEAR, SLOW_WEAR_DAYS = 0.03, (25.0, 90.0)  # amplitude swings slowly: slides, belts, coolant

# Tools. The teeth sound louder as they wear (Dimla 2000), until the tool is changed
TOOL_DAYS = (0.3, 2.5)  # between changes, of a machine
CHANGE_JITTER = 0.25  # of the time between changes of tools and jobs
TOOL_WEAR = (0.3, 1.2)  # growth of the tooth lines' amplitude over a tool's life
TOOL_SIGMA = 0.1  # log amplitude, from tool to tool

# Healthy sound, in g
SHAFT_HZ = (20.0, 60.0)  # 1,200 to 3,600 rpm at nominal speed
SHAFT_LINES, SHAFT_DECAY = 12, 2.4  # harmonics of the shaft; power falls with this power of their order
TOOL_LINES, TOOL_DECAY, TEETH = 8, 1.5, (3, 10)  # harmonics of the tooth-passing frequency, under load only
GEAR_TEETH, MESH_LINES, MESH_DECAY = (19, 47), 4, 1.5  # mesh frequency: teeth times shaft; with sidebands at the shaft
MESH_SIDEBAND, MESH_POWER = 0.15, 0.5  # power of a sideband of its line; of the mesh, of the tool's line
SHAFT_AMPLITUDE = (0.018, 0.046)  # 0.7 to 1.8 mm/s at 40 Hz: a good machine of class I of ISO 10816-1
TOOL_AMPLITUDE = (0.02, 0.12)
BROADBAND_AMPLITUDE = (0.01, 0.05)  # through the resonances, when cutting
IDLE_BROADBAND = 0.35  # of that in amplitude, when idle
RESONANCES, RESONANCE_SPAN, DAMPING = 4, (0.04, 0.85), (0.02, 0.07)  # span: of the highest frequency, even in its log
RESONANCE_FLOOR, HISS_POWER, HISS_CORNER = 0.3, 0.3, 0.1  # least weight of a mode; broadband noise between the modes
LINE_WIDTH = 0.01  # speed wanders by 1 % within a record
LEAKAGE_BINS = 0.35  # a line is never sharper than this

# Bearings (Randall and Antoni 2011, section 2; ranges of catalogue bearings: Harris and Kotzalas 2006)
ROLLERS = (7, 16)
DIAMETER_RATIO = (0.14, 0.28)  # of rolling element to pitch circle
CONTACT_ANGLE = (0.0, 30.0)  # degrees
SLIP = 0.015  # random slip of 1 to 2 % of the fault frequency smears its harmonics
BEARING_LINES = 160  # harmonics, as far as the highest frequency
CAGE_SIDEBAND, LOAD_ZONE_SIDEBAND = 0.2, 0.4  # power of a sideband of its line: rolling element and inner race
SLOW_SIDEBAND = 0.05  # outer race: it stands still in the load zone
WAVINESS = (0.2, 0.6)  # amplitude of a good bearing, of the healthy level where it shows most

# Sensor
SENSOR_GAIN_SIGMA = 0.15  # log; mounting and calibration differ
FLOOR_AMPLITUDE = (0.001, 0.003)  # noise of sensor and amplifier, in g
FLOOR_PINK = 0.01  # of the highest frequency: below it the noise rises as 1/f
ROLL_OFF = (1.5, 4.0)  # corner of a new sensor's low-pass, of the highest frequency
AGEING_PER_YEAR = (0.1, 1.2)  # log by which the corner falls: the couplant dries, the cable takes up water
MOVED_GAIN_SIGMA, MOVED_TILT_SIGMA, MOVED_RIPPLE = 0.25, 0.3, 0.2  # log: another place hears other modes
REPAIR_GAIN_SIGMA, REPAIR_TILT_SIGMA = 0.06, 0.06  # log; another bearing, another mounting

# Chance
BIN_SIGMA = (0.08, 0.16)  # of one bin's amplitude: 39 to 10 averages (Welch 1967; normal by Fisher 1922)
ROW_SIGMA = 0.04  # of a whole row's amplitude
SHOCK_RATE, SHOCK_AMPLITUDE = 8e-4, (1.0, 4.0)  # of cutting rows: a chip, a collision, a fork lift

# Firmware: another gain with a filter that lets the upper bins through, or band edges that moved
FIRMWARE_GAIN, FIRMWARE_TILT = 1.6, 0.25
FIRMWARE_EDGES = 1.06  # new edges over old ones
FIRMWARE_NAMES = ("1.0", "2.0")

# Faults. An amplitude of 1 is as much power as the healthy machine has in the state and bin that show the fault most
BEARING_MODES = ("outer_race", "inner_race", "rolling_element")  # Randall and Antoni 2011
# imbalance: the shaft's line (Randall 2011, section 2.2); misalignment: twice the shaft's frequency first; looseness:
# many harmonics and halves of the shaft, and rattle; lubrication: metal touches metal, broadband at high frequencies;
# energy: everything is louder and nothing else; resonance_shift: a crack softens the structure, a resonance moves and
# the energy stays; saturation: a loose machine, while the sensor's range shrinks and clips (Bussgang 1952)
SHAFT_MODES = ("imbalance", "misalignment", "looseness", "saturation")  # as loud at any load; others grow with it
SWAPPED_MODES = (*BEARING_MODES, "lubrication")  # the repair puts another bearing in
ONSET_DB = (-24.0, -16.0)  # the fault's power over the healthy power when it begins: far below the noise
FAILURE_DB = (8.0, 16.0)  # rise of the level at the failure: one to two zones of ISO 10816-1
MILD_DB = (2.0, 5.5)  # of an episode that nobody logs, and of a machine that was never well
LAWS = ("exponential", "power_law", "two_stage", "linear")  # Gebraeel 2005; Paris 1963, Li 2000; Nectoux 2012; wear
PARIS_EXPONENT = (2.6, 3.4)  # of the stress intensity, steel
KNEE = (0.5, 0.85)  # share of the growth that the first, slow stage takes
KNEE_GROWTH = 2.0  # amplitude by which it has grown then
# From onset to failure, in days: weeks to months in a plant, shortened here so that a plan of ten weeks holds them
GROWTH_DAYS = {
    "outer_race": (5.0, 14.0),
    "inner_race": (5.0, 14.0),
    "rolling_element": (5.0, 14.0),
    "imbalance": (3.0, 12.0),
    "misalignment": (4.0, 14.0),
    "looseness": (3.0, 10.0),
    "lubrication": (2.0, 8.0),
    "energy": (3.0, 12.0),
    "resonance_shift": (4.0, 14.0),
    "saturation": (3.0, 10.0),
}
GROWTH_LAWS = {
    "outer_race": ("power_law", "two_stage", "exponential"),
    "inner_race": ("power_law", "two_stage", "exponential"),
    "rolling_element": ("power_law", "two_stage", "exponential"),
    "imbalance": ("linear", "exponential"),
    "misalignment": ("linear", "exponential"),
    "looseness": ("exponential", "linear"),
    "lubrication": ("exponential", "two_stage"),
    "energy": ("exponential", "linear"),
    "resonance_shift": ("power_law", "exponential"),
    "saturation": ("exponential", "power_law"),
}
MISALIGNMENT_LINES = (0.3, 1.0, 0.4, 0.15)  # power of the first harmonics
LOOSE_LINES, LOOSE_DECAY, LOOSE_HALVES, RATTLE = 24, 1.2, 0.4, 0.15
RUBBING_CORNER = 0.25  # of the highest frequency: rubbing sounds above it
SOFTENING = 0.88  # natural frequency of the cracked structure over the sound one
SATURATING_FAULT = "looseness"
HEADROOM = 4.0  # range of the sensor over the healthy level of a heavy cut; falls as 1 / (1 + amplitude)

# What people do
MILD_DAYS = (1.0, 5.0)  # an episode that nobody logs
DOWN_HOURS, REPAIR_HOURS = (2.0, 16.0), (2.0, 10.0)
SWAP_HOURS, SENSOR_HOURS, STOP_HOURS = (4.0, 12.0), (0.5, 2.0), (24.0, 96.0)
LATE_HOURS = (12.0, 96.0)  # an entry that was written down late
