// A picture from the camera. It is on only while its dialog is open.
let stream = null;

async function openCamera() {
  // Browsers give the camera to this machine and to https only; the file dialog of a phone offers its camera anywhere.
  if (!navigator.mediaDevices) return $("capture").click();
  $("snap").disabled = true;
  $("camera").showModal();
  try {
    const own = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } },
    });
    closeCamera(); // of a dialog that was closed while the browser asked, and opened again
    stream = own;
    if (!$("camera").open) return closeCamera();
    $("video").srcObject = own;
    await $("video").play();
    $("snap").disabled = false;
    $("snap").focus();
  } catch (error) {
    if (!$("camera").open) return;
    $("camera").close();
    tell(CAMERA_ERRORS[error.name] ?? "The camera does not start. Is another program using it?", true);
  }
}

const CAMERA_ERRORS = {
  NotAllowedError: "The camera is not allowed for this page. The browser's settings of this site can change that.",
  NotFoundError: "There is no camera here.",
};

async function snap() {
  const video = $("video"), canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  $("camera").close();
  await take([new File([blob], "camera.jpg", { type: "image/jpeg" })]);
}

function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = $("video").srcObject = null;
}
