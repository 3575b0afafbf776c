// Settings of the OHIF viewer at /ohif/: our extension and mode, and this server's own DICOMweb.
window.config = {
  routerBasename: '/ohif/',
  extensions: ['/sparsight/ohif/extension.mjs'],
  modes: ['/sparsight/ohif/mode.mjs'],
  showStudyList: true,
  showWarningMessageForCrossOrigin: false,
  showCPUFallbackMessage: false,
  showLoadingIndicator: true,
  strictZSpacingForVolumeViewport: true,
  investigationalUseDialog: { option: 'never' }, // our panel says so, for as long as it is open
  useSharedArrayBuffer: 'FALSE',
  defaultDataSourceName: 'dicomweb',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'dicomweb',
      configuration: {
        friendlyName: 'Studies that sparsight serves',
        name: 'sparsight',
        qidoRoot: '/sparsight/dicomweb',
        wadoRoot: '/sparsight/dicomweb',
        qidoSupportsIncludeField: true,
        supportsReject: false,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        imageRendering: 'wadors',
        thumbnailRendering: 'wadors',
        enableStudyLazyLoad: true,
        dicomUploadEnabled: false,
        omitQuotationForMultipartRequest: true,
        bulkDataURI: { enabled: true, relativeResolution: 'studies' },
      },
    },
  ],
};
